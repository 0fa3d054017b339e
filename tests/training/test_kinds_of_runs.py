"""Runs that go on from a file, FACT's gated pathway, and readers in processes of their own; each to a finished file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from webdataset.writer import TarWriter

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter, SiteAdapter
from dp_adapter.errors import TrainingError
from dp_adapter.training.config import from_tables
from dp_adapter.training.initial_adapter import new_adapter, read_initial_adapter
from dp_adapter.training.train import train
from dp_adapter.weights.checkpoint import Checkpoint
from dp_adapter.weights.formats import read
from dp_adapter.weights.library import Library
from tests.training import made


def finished(tables: dict[str, Any]) -> Checkpoint:
    """Runs, and reads the file as the extension does."""
    path = train(from_tables(tables))
    return read(Library([path.parent], paths_allowed=True).resolve(str(path)))


@pytest.fixture
def short(tables: dict[str, Any]) -> dict[str, Any]:
    """One step of the first stage, with one sampled row at the end."""
    watch = {"every": 1, "checkpoint_every": 0, "samples_every": 0, "samples": 1, "sample_steps": 1}
    return {**tables, "watch": watch, "stage": [{"kind": "iea", "steps": 1, "batch": 2, "lr": 1e-3}]}


def key_of(adapter: Adapter, index: int) -> torch.Tensor:
    site = adapter.site(index)
    assert isinstance(site, SiteAdapter)
    return site.to_k.weight


def test_a_run_goes_on_from_a_faceid_file_and_another_from_its_result(
    short: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    start = faceid_file(base, tmp_path / "faceid.bin")
    tars = str(shards_of_arcface(tmp_path / "arcface.tar"))
    run = {**short, "data": {**short["data"], "shards": [tars]}, "ema": 0.0}
    run["adapter"] = {"encoder": "arcface", "tca_rank": 2, "start": str(start)}
    first = finished(run)
    assert (first.family, first.encoders, first.tokens_per_photo) == ("dp-adapter", ("arcface",), 4)
    moved = (key_of(first.adapter, 3) - key_of(read_initial_adapter(start).adapter, 3)).abs().max()
    assert 0 < moved < 0.01  # one step of AdamW from the file's weights
    made_by_us = tmp_path / "out" / "adapter.safetensors"
    again = {**run, "out": str(tmp_path / "again"), "adapter": {**run["adapter"], "start": str(made_by_us)}}
    again["stage"] = [{"kind": "tca", "steps": 1, "batch": 2, "lr": 1e-3}]
    second = finished(again)
    assert torch.equal(key_of(second.adapter, 3), key_of(first.adapter, 3))
    assert any(".text." in name for name in second.adapter.state_dict())
    again["adapter"] = {"encoder": "sface", "tca_rank": 2, "start": str(made_by_us)}
    with pytest.raises(TrainingError, match="has encoder 'arcface', this run 'sface'"):
        train(from_tables({**again, "out": str(tmp_path / "third")}))


def faceid_file(base: Path, path: Path) -> Path:
    """In the layout of tencent-ailab/IP-Adapter's FaceID files, for the narrow base."""
    library: Any = diffusers
    unet = library.UNet2DConditionModel.from_pretrained(str(base), subfolder="unet", local_files_only=True)
    adapter = new_adapter(unet, "arcface")
    sites = {}
    for index in range(len(adapter.sites)):
        site = adapter.site(index)
        assert isinstance(site, SiteAdapter)
        sites[f"{2 * index + 1}.to_k_ip.weight"] = site.to_k.weight.detach().clone()
        sites[f"{2 * index + 1}.to_v_ip.weight"] = site.to_v.weight.detach().clone()
    torch.save({"image_proj": adapter.projection.state_dict(), "ip_adapter": sites}, path)
    return path


def shards_of_arcface(path: Path) -> Path:
    with TarWriter(str(path)) as tar:
        for number in range(4):
            sample = made.sample(number, number % 2)
            face = np.random.default_rng(number).normal(size=512).astype(np.float32)
            sample = dataclasses.replace(sample, embeddings={**sample.embeddings, "insightface": face})
            tar.write(sample.to_record(lossless=True))
    return path


def test_the_gated_pathway_is_trained_to_a_file(short: dict[str, Any]) -> None:
    short["adapter"] = {"encoder": "transface", "gated": True, "tokens": 4}
    short["stage"] = [{"kind": "iea", "steps": 2, "batch": 2, "lr": 1e-3, "losses": {"fair": 0.1, "localisation": 0.0}}]
    found = finished(short)
    assert (found.mode, found.encoders, found.tokens_per_photo) == ("gated", ("transface",), 4)
    assert isinstance(found.adapter.site(0), GatedSiteAdapter)
    assert list(Path(short["out"]).glob("samples/*.png"))


def test_readers_in_processes_of_their_own_change_nothing(short: dict[str, Any], tmp_path: Path) -> None:
    short["data"]["cache_latents"] = False
    here = finished(short)
    short["data"]["workers"] = 1
    there = finished({**short, "out": str(tmp_path / "there")})
    one, other = here.adapter.state_dict(), there.adapter.state_dict()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
