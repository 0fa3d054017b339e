"""The dry run: attention as a fused kernel keeps it, sums by hand, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dp_adapter.cli import main
from dp_adapter.training.config import from_tables
from dp_adapter.training.estimate import estimate, flash_attention, measured
from dp_adapter.training.sizes import UNETS


def test_a_linear_chain_is_counted_as_by_hand() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.GELU(), nn.Linear(16, 4, bias=False))
        x = torch.empty(5, 8)
        one = measured(lambda: net(x), net)
    assert one.kept == 4 * 5 * (8 + 16 + 16)  # inputs of the layers and of GELU
    assert one.forward == 2 * 5 * (8 * 16 + 16 * 4)
    assert one.backward == 2 * 5 * (8 * 16 + 2 * 16 * 4)  # the first input takes no gradient


def test_attention_keeps_no_matrix_of_all_pairs() -> None:
    with torch.device("meta"), flash_attention():
        q, k, v = (torch.empty(1, 2, n, 4, requires_grad=True) for n in (100, 30, 30))
        one = measured(lambda: F.scaled_dot_product_attention(q, k, v), nn.Identity())
    numbers = 2 * (100 * 4 + 2 * 30 * 4 + 100 * 4 + 100)  # q, k, v, the output, and a number a row
    assert one.kept == 4 * numbers
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
