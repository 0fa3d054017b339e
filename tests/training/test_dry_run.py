"""The dry run: attention as a fused kernel keeps it, sums by hand, and the command."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dp_adapter.cli import main
from dp_adapter.errors import HostError, TrainingError
from dp_adapter.hosts.pipelines.single_file import unet_parameters
from dp_adapter.training.base_shapes import UNETS
from dp_adapter.training.config import from_tables
from dp_adapter.training.dry_run import estimate, flash_attention, measure_pass
from dp_adapter.training.initial_adapter import add_pathways, read_initial_adapter
from dp_adapter.weights.families import own_adapter


def test_a_linear_chain_is_counted_as_by_hand() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.GELU(), nn.Linear(16, 4, bias=False))
        x = torch.empty(5, 8)
        one = measure_pass(lambda: net(x), net)
    assert one.activations == 4 * 5 * (8 + 16 + 16)  # inputs of the layers and of GELU
    assert one.forward == 2 * 5 * (8 * 16 + 16 * 4)
    assert one.backward == 2 * 5 * (8 * 16 + 2 * 16 * 4)  # the first input takes no gradient


def test_attention_keeps_no_matrix_of_all_pairs() -> None:
    with torch.device("meta"), flash_attention():
        q, k, v = (torch.empty(1, 2, n, 4, requires_grad=True) for n in (100, 30, 30))
        one = measure_pass(lambda: F.scaled_dot_product_attention(q, k, v), nn.Identity())
    numbers = 2 * (100 * 4 + 2 * 30 * 4 + 100 * 4 + 100)  # q, k, v, the output, and a number a row
    assert one.activations == 4 * numbers
    assert one.forward == 2 * 2 * 100 * 30 * 4 * 2
    assert one.backward == 5 * 2 * 2 * 100 * 30 * 4
    assert F.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"


def test_parameters_of_a_run(tables: dict[str, Any]) -> None:
    tables["stage"] = tables["stage"][:2]
    found = estimate(from_tables(tables), 1e12)
    iea, tca = found.stages
    assert iea.trained > tca.trained > 0
    assert iea.updating == 12 * iea.trained
    assert all(one.total(True) < one.total(False) for one in found.stages)
    assert tca.flops > iea.flops  # two more passes without gradients
    assert iea.hours[0] == pytest.approx(iea.flops * 2 / 1e12 / 3600)


SMALL = Path(__file__).parents[2] / "models" / "demo" / "dp_small_base.safetensors"


def small(tables: dict[str, Any], path: Path, **base: str) -> Any:
    stage = {"kind": "iea", "steps": 1}
    changed = {"base": {"model": str(path), **base}, "data": {"shards": ["none"], "resolution": 64}, "stage": [stage]}
    return from_tables({**tables, **changed})


def test_sizes_are_those_of_the_file(tables: dict[str, Any], tmp_path: Path) -> None:
    found = estimate(small(tables, SMALL), 1e12)
    assert found.unet == unet_parameters(SMALL) == pytest.approx(13e6, rel=0.05)
    assert "The UNet of dp_small_base.safetensors has 13 M parameters" in found.table()
    assert found.stages[0].frozen < 0.1 * 2**30, "its own autoencoder and text encoder, too"
    alone = tmp_path / "alone.safetensors"
    alone.hardlink_to(SMALL) if SMALL.stat().st_dev == tmp_path.stat().st_dev else shutil.copy(SMALL, alone)
    with pytest.raises(HostError, match=r"UNet of 12\.8 M .* of one of 859\.5 M.*Put the folder alone"):
        estimate(small(tables, alone), 1e12)
    assert estimate(small(tables, alone, config=str(SMALL.with_suffix(""))), 1e12).unet == found.unet


def test_a_model_that_is_not_here_is_told(tables: dict[str, Any], tmp_path: Path) -> None:
    found = estimate(small(tables, tmp_path / "none.safetensors"), 1e12)
    assert found.unet == 859_520_964
    assert f"Stable Diffusion 1.5 (there is no {tmp_path / 'none.safetensors'}) has 860 M" in found.table()
    (tmp_path / "empty").mkdir()
    with pytest.raises(HostError, match=r"no unet/config\.json"):
        estimate(small(tables, tmp_path / "empty"), 1e12)
    with pytest.raises(TrainingError, match=r'Set base\.family = "sd15"'):
        estimate(small(tables, SMALL, family="sdxl"), 1e12)


def test_the_adapter_to_start_from_is_counted_as_it_is(tables: dict[str, Any], tmp_path: Path) -> None:
    start = tmp_path / "with_pathways.safetensors"
    shipped = read_initial_adapter(SMALL.with_name("dp_small_base_adapter.safetensors"))
    own_adapter.save(start, add_pathways(shipped.adapter, 4, ffb=True), shipped.base, shipped.encoder, {})
    config = small(tables, SMALL)
    new = estimate(config, 1e12).stages[0]
    adapter = replace(config.adapter, encoder="sface", start=str(start))
    begun = estimate(replace(config, adapter=adapter), 1e12).stages[0]
    assert begun.adapter > new.adapter, "its text pathways and gates are there already"


def test_real_shapes_are_the_published_ones() -> None:
    import diffusers

    library: Any = diffusers
    with torch.device("meta"):
        unet = library.UNet2DConditionModel(**UNETS["sd15"])
    assert sum(value.numel() for value in unet.parameters()) == 859_520_964


def test_the_command_says_what_is_wrong_and_what_a_run_needs(
    tables: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        f"out = '{tables['out']}'\nbase.model = '{tables['base']['model']}'\ndata.shards = ['none/*.tar']\n"
        "data.resolution = 64\n[[stage]]\nkind = 'iea'\nsteps = 1\n"
    )
    assert main(["train", str(path), "--dry-run"]) == 0
    assert "| iea, checkpointing |" in capsys.readouterr().out
    assert main(["train", str(path), "--set", "stage.0.stepz=1"]) == 1
    assert "Did you mean 'steps'" in capsys.readouterr().err
    assert main(["train", str(path)]) == 1
    assert "No shard is named none/*.tar" in capsys.readouterr().err
