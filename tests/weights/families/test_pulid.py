"""PuLID files: both versions under both namings, sizes from shapes, tokens of one and of several photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import Checkpoint
from tests import tiny, tiny_pulid

TOKENS: Mapping[tiny_pulid.Version, int] = {"v1": 10, "v1.1": tiny_pulid.QUERIES}
LAYOUTS: list[tiny_pulid.Layout] = ["official", "repack"]
CONTAINERS: Mapping[tiny_pulid.Layout, tiny.Container] = {"official": "zip", "repack": "safetensors"}


def read(folder: Path, version: tiny_pulid.Version, layout: tiny_pulid.Layout = "official") -> Checkpoint:
    return formats.read(tiny.write(folder / "x.bin", tiny_pulid.tensors(version, layout), CONTAINERS[layout]))


def features(photos: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        faceid=torch.randn(photos, 512, generator=generator),
        eva_pooled=3 * torch.randn(photos, tiny_pulid.EVA_OUT, generator=generator),
        eva_hidden=torch.randn(photos, 5, 10, tiny_pulid.EVA, generator=generator),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", TOKENS)
def test_they_are_told_by_their_keys(tmp_path: Path, version: tiny_pulid.Version, layout: tiny_pulid.Layout) -> None:
    checkpoint = read(tmp_path, version, layout)
    assert (checkpoint.family, checkpoint.title, checkpoint.base) == ("pulid", f"PuLID {version}", "sdxl")
    assert (checkpoint.pack, checkpoint.mode, checkpoint.combine) == ("antelopev2", "orthogonal_v2", "concatenate")
    assert checkpoint.encoders == ("arcface-raw", "eva") and checkpoint.variants == () and checkpoint.lora == ()
    assert dict(checkpoint.features_width) == {"arcface-raw": 512, "eva": tiny_pulid.EVA}
    assert checkpoint.tokens_per_photo == TOKENS[version] and checkpoint.context == tiny.CONTEXT
    file = tiny_pulid.tensors(version)
    for index in range(70):
        for name in "kv":
            weight = checkpoint.adapter.site(index).get_parameter(f"to_{name}.weight")
            assert torch.equal(weight, file[f"id_adapter_attn_layers.{2 * index + 1}.id_to_{name}.weight"])
    one, other = (read(tmp_path, version, each).tokens(features(1)) for each in LAYOUTS)
    assert torch.equal(one.cond, other.cond) and torch.equal(one.uncond, other.uncond)


def test_several_photos(tmp_path: Path) -> None:
    both = features(2)
    first, second = (
        Features(**{key: value[number : number + 1] for key, value in vars(both).items() if value is not None})
        for number in range(2)
    )
    old, new = read(tmp_path, "v1"), read(tmp_path, "v1.1")
    tokens = old.tokens(both)
    assert tokens.cond.shape == tokens.uncond.shape == (20, tiny.CONTEXT)
    each = torch.cat([old.tokens(first).cond, old.tokens(second).cond])
    torch.testing.assert_close(tokens.cond, each, atol=1e-5, rtol=1e-5)
    assert torch.allclose(tokens.uncond[:10], tokens.uncond[10:], atol=1e-5)
    joined = new.tokens(both)
    assert joined.cond.shape == joined.uncond.shape == (tiny_pulid.QUERIES, tiny.CONTEXT)
    assert torch.equal(joined.uncond, new.tokens(first).uncond)
    assert not any(torch.allclose(joined.cond, new.tokens(one).cond, atol=1e-3) for one in (first, second))
    swapped = Features(**{key: value.flip(0) for key, value in vars(both).items() if value is not None})
    assert torch.allclose(new.tokens(swapped).cond, joined.cond, atol=1e-4), "their order does not matter"


def test_the_pooled_vector_is_brought_to_length_1(tmp_path: Path) -> None:
    given = features(1)
    assert given.eva_pooled is not None
    longer = Features(given.faceid, eva_pooled=7 * given.eva_pooled, eva_hidden=given.eva_hidden)
    for version in TOKENS:
        checkpoint = read(tmp_path, version)
        torch.testing.assert_close(checkpoint.tokens(longer).cond, checkpoint.tokens(given).cond)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"faceid": None}, "needs raw ArcFace embeddings, and none"),
        ({"eva_pooled": None}, "needs EVA02-CLIP's image embeddings, and none"),
        ({"eva_hidden": None}, "needs EVA02-CLIP's hidden states, and none"),
        ({"faceid": torch.zeros(1, 128)}, "of width 536, but the encoder gives 152"),
        ({"eva_hidden": torch.zeros(1, 5, 10, 1024)}, "hidden states of width 32, but the encoder gives 1024"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Tensor | None], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        read(tmp_path, "v1.1").tokens(Features(**(vars(features(1)) | change)))


def lacking(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(key)


def narrower(tensors: dict[str, Tensor]) -> None:
    for name in "kv":
        tensors[f"id_adapter_attn_layers.5.id_to_{name}.weight"] = torch.zeros(32, 99).half()


BROKEN: Mapping[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "V of a layer": (lacking("id_adapter_attn_layers.5.id_to_v.weight"), "layer 5 lacks a matching pair"),
    "another context": (narrower, "layer 5 lacks a matching pair of K and V for tokens of width 48"),
    "a mapping": (lacking("id_adapter.mapping_3.6.bias"), "projection is incomplete.*mapping_3.6.bias"),
    "a layer of the encoder": (lacking("id_adapter.layers.9.1.3.weight"), "projection is incomplete.*layers.9.1.3"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_incomplete_files_are_refused(tmp_path: Path, what: str) -> None:
    change, words = BROKEN[what]
    tensors = tiny_pulid.tensors("v1.1")
    change(tensors)
    with pytest.raises(WeightsError, match=words):
        formats.read(tiny.write(tmp_path / "x.safetensors", tensors, "safetensors"))


def test_a_layer_too_few(tmp_path: Path) -> None:
    tensors = {key: value for key, value in tiny_pulid.tensors("v1").items() if "layers.139." not in key}
    with pytest.raises(WeightsError, match=r"69 attention layers; PuLID for SDXL has 70"):
        formats.read(tiny.write(tmp_path / "x.bin", tensors, "zip"))


def test_layers_of_the_encoder_that_cannot_be_shared(tmp_path: Path) -> None:
    tensors = {key: value for key, value in tiny_pulid.tensors("v1.1").items() if "id_adapter.layers.9." not in key}
    with pytest.raises(WeightsError, match="9 layers cannot be shared among 5 hidden states"):
        formats.read(tiny.write(tmp_path / "x.bin", tensors, "zip"))
