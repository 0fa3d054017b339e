"""The project's own format: what was saved comes back, and what is not its own is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dp_adapter.core.adapter import SiteAdapter
from dp_adapter.core.latent_gate import LatentGate
from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.weights import formats
from dp_adapter.weights.families import own_adapter
from tests import tiny

PARTS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
@pytest.mark.parametrize(("text", "blending"), PARTS)
def test_round_trip(tmp_path: Path, base: Base, text: bool, blending: bool) -> None:
    adapter = tiny.adapter(base, text=text, blending=blending)
    path = tmp_path / "mine.safetensors"
    own_adapter.save(path, adapter, base, "sface", {"steps": 60, "data": "faces"})
    checkpoint = formats.read(path)
    assert (checkpoint.family, checkpoint.base, checkpoint.encoders) == ("dp-adapter", base, ("sface",))
    assert checkpoint.tokens_per_photo == 4
    assert dict(checkpoint.features_width) == {"sface": tiny.FACE}
    assert json.loads(checkpoint.metadata["training"]) == {"steps": 60, "data": "faces"}
    saved, loaded = adapter.state_dict(), checkpoint.adapter.state_dict()
    assert saved.keys() == loaded.keys()
    for key, value in saved.items():
        assert torch.equal(value, loaded[key]), key
    for index in range(len(adapter.sites)):
        site = checkpoint.adapter.site(index)
        assert isinstance(site, SiteAdapter)
        assert (site.text is not None, site.blending is not None) == (text, blending)


def test_gate_and_guidance_come_back(tmp_path: Path) -> None:
    adapter = tiny.adapter("sd15")
    adapter.gate = LatentGate(4, 8).half()
    own_adapter.save(tmp_path / "x.safetensors", adapter, "sd15", "sface", {}, guidance=1.5)
    checkpoint = formats.read(tmp_path / "x.safetensors")
    assert checkpoint.guidance == 1.5 and checkpoint.adapter.gate is not None
    for key, value in checkpoint.adapter.gate.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value.half(), adapter.gate.state_dict()[key])
    own_adapter.save(tmp_path / "y.safetensors", tiny.adapter("sd15"), "sd15", "sface", {})
    plain = formats.read(tmp_path / "y.safetensors")
    assert plain.guidance is None and plain.adapter.gate is None


@pytest.mark.parametrize("guidance", ["0", "-1", "2.5", "nan", "inf", "much", "1" * 10_000])
def test_a_guidance_that_nobody_could_ask_for_is_refused(tmp_path: Path, guidance: str) -> None:
    with pytest.raises(WeightsError, match=r"its metadata says guidance '.{1,30}'") as refused:
        formats.read(rewritten(tmp_path / "x.safetensors", {"guidance": guidance}))
    assert len(str(refused.value)) < 300


def test_a_damaged_gate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="the gate is incomplete"):
        formats.read(rewritten(tmp_path / "x.safetensors", tensors={"gate.first.weight": torch.zeros(8, 12, 3, 3)}))


def test_a_gate_for_other_latents_is_refused(tmp_path: Path) -> None:
    adapter = tiny.adapter("sd15")
    adapter.gate = LatentGate(16, 8)
    own_adapter.save(tmp_path / "x.safetensors", adapter, "sd15", "sface", {})
    with pytest.raises(WeightsError, match="latents of 16 channels"):
        formats.read(tmp_path / "x.safetensors")


def test_tokens_come_from_the_saved_projection(tmp_path: Path) -> None:
    adapter = tiny.adapter("sd15")
    own_adapter.save(tmp_path / "x.safetensors", adapter, "sd15", "arcface", {})
    face = torch.randn(2, tiny.FACE, generator=torch.Generator().manual_seed(0))
    tokens = formats.read(tmp_path / "x.safetensors").tokens(Features(faceid=face))
    with torch.no_grad():
        torch.testing.assert_close(tokens.cond, adapter.projection(face).flatten(0, 1))
        torch.testing.assert_close(tokens.uncond, adapter.projection(torch.zeros_like(face)).flatten(0, 1))


def test_half_precision_is_kept(tmp_path: Path) -> None:
    own_adapter.save(tmp_path / "x.safetensors", tiny.adapter("sd15", text=True).half(), "sd15", "arcface", {})
    site = formats.read(tmp_path / "x.safetensors").adapter.site(0)
    assert {parameter.dtype for parameter in site.parameters()} == {torch.float16}


def rewritten(
    path: Path, metadata: Mapping[str, str] | None = None, tensors: Mapping[str, Tensor | None] | None = None
) -> Path:
    """A saved adapter with some metadata or tensors changed; None drops a tensor."""
    own_adapter.save(path, tiny.adapter("sd15", text=True, blending=True), "sd15", "arcface", {})
    with safe_open(str(path), framework="pt") as file:
        facts = dict(file.metadata() or {})
    kept = {**load_file(str(path)), **(tensors or {})}
    save_file({key: value for key, value in kept.items() if value is not None}, str(path), facts | {**(metadata or {})})
    return path


@pytest.mark.parametrize("version", ["2", "17"])
def test_a_newer_version_is_refused(tmp_path: Path, version: str) -> None:
    path = rewritten(tmp_path / "x.safetensors", {"version": version})
    with pytest.raises(WeightsError, match=f"version {version} .*reads up to 1. Update the extension"):
        formats.read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", "one"), ("version", "-1"), ("version", ""), ("base", "sd3"), ("encoder", "x"), ("kind", "resampler")],
)
def test_unknown_facts_are_refused(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(WeightsError, match=key):
        formats.read(rewritten(tmp_path / "x.safetensors", {key: value}))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sites.7.to_k.weight", "layer 7 is incomplete"),
        ("sites.7.text.k_up.weight", "layer 7 is incomplete.*text.k_up.weight"),
        ("sites.7.blending.conv.bias", "layer 7 is incomplete.*blending.conv.bias"),
        ("sites.7.blending.g", "layer 7 is incomplete.*blending.g"),
        ("projection.norm.bias", "projection is incomplete"),
    ],
)
def test_missing_tensors_are_named(tmp_path: Path, key: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        formats.read(rewritten(tmp_path / "x.safetensors", tensors={key: None}))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "x.safetensors", tensors={"sites.7.to_v.weight": torch.zeros(3, 3)})
    with pytest.raises(WeightsError, match=r"layer 7 is incomplete.*to_v\.weight"):
        formats.read(path)


@pytest.mark.parametrize(("saved", "claimed"), [("sd15", "sdxl"), ("sdxl", "sd15")])
def test_a_file_for_the_other_base_than_it_says(tmp_path: Path, saved: Base, claimed: str) -> None:
    path = tmp_path / "x.safetensors"
    own_adapter.save(path, tiny.adapter(saved), saved, "arcface", {})
    with safe_open(str(path), framework="pt") as file:
        facts = dict(file.metadata() or {})
    save_file(load_file(str(path)), str(path), metadata=facts | {"base": claimed})
    with pytest.raises(WeightsError, match=f"is for {claimed} but has {tiny.SITES[saved]} of"):
        formats.read(path)


def test_without_its_metadata_it_is_nobodys(tmp_path: Path) -> None:
    own_adapter.save(tmp_path / "x.safetensors", tiny.adapter("sd15"), "sd15", "arcface", {})
    save_file(load_file(str(tmp_path / "x.safetensors")), str(tmp_path / "y.safetensors"))
    with pytest.raises(WeightsError, match="not a supported identity adapter"):
        formats.read(tmp_path / "y.safetensors")
