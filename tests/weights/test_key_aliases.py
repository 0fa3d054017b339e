"""Adapters under the names that training scripts and wrappers give their keys: read as under their published names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from dp_adapter.hosts.attach.sites import Base, site_names
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import Checkpoint
from tests import tiny, tiny_pulid
from tests.weights import fused_files

Tensors = dict[str, Tensor]
FROZEN = {
    "unet.conv_in.weight": torch.full((4, 4, 3, 3), torch.nan),  # what is not needed is not looked at
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.ones(32, 64),
    "vae.decoder.conv_in.bias": torch.ones(4),
    "text_encoder.text_model.final_layer_norm.weight": torch.ones(4),
}


def training(tensors: Tensors) -> Tensors:
    """tencent-ailab/IP-Adapter's ``tutorial_train*.py`` through accelerate: one module, the frozen UNet beside."""
    named = {key.replace("image_proj.", "image_proj_model.", 1): value for key, value in tensors.items()}
    return FROZEN | {re.sub(r"^ip_adapter\.", "adapter_modules.", key): value for key, value in named.items()}


def processors(tensors: Tensors, base: Base = "sd15") -> Tensors:
    """The same as safetensors: of weights with two names accelerate keeps the one under the UNet."""
    paths = [site.diffusers for site in site_names(base)]

    def moved(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"unet.{paths[number // 2]}.attn{1 + number % 2}.processor."

    return {re.sub(r"^adapter_modules\.(\d+)\.", moved, key): value for key, value in training(tensors).items()}


def within(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + key: value for key, value in training(tensors).items()}


def between(part: str) -> Callable[[Tensors], Tensors]:
    def dressed(tensors: Tensors) -> Tensors:
        return {key.replace(".", f".{part}.", 1): value for key, value in training(tensors).items()}

    return dressed


def twice(tensors: Tensors) -> Tensors:
    """Both names in one file; the published one counts."""
    return {key: value * 0 for key, value in training(tensors).items() if not key.startswith("unet.")} | tensors


DRESSED: Mapping[str, Callable[[Tensors], Tensors]] = {
    "training": training,
    "processors": processors,
    "diffusers' list of them": lambda x: {
        re.sub(r"(to_[kv]_ip)\.weight", r"\1.0.weight", k): v for k, v in processors(x).items()
    },
    "DistributedDataParallel": within("module."),
    "torch.compile": within("_orig_mod."),
    "both": within("module._orig_mod."),
    "compiled parts": between("_orig_mod"),
    "FSDP": between("_fsdp_wrapped_module"),
    "Lightning": within("state_dict.model."),
    "Lightning's module": within("ip_adapter."),
    "DeepSpeed": within("module.ip_adapter."),
    "both names": twice,
}
FAMILIES = {
    "ip-adapter": 4, "ip-adapter-plus": 6, "ip-adapter-full-face": 257, "faceid": 4, "faceid-plus": 4,
    "faceid-portrait": 16, "faceid-sequence": 16, "mip-adapter": 4, "mip-adapter-plus": 6,
}  # fmt: skip


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.family, one.base, one.tokens_per_photo) == (other.family, other.base, other.tokens_per_photo)
    theirs = other.adapter.state_dict()
    assert list(one.adapter.state_dict()) == list(theirs)
    for key, value in one.adapter.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    loras = [sorted(file.lora, key=lambda low: (low.layer, low.linear)) for file in (one, other)]
    assert len(loras[0]) == len(loras[1])
    for mine, its in zip(*loras, strict=True):
        assert (mine.layer, mine.linear) == (its.layer, its.linear)
        assert torch.equal(mine.up, its.up) and torch.equal(mine.down, its.down)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_checkpoint_is_the_published_file(tmp_path: Path, family: str) -> None:
    tensors = tiny.flat(tiny.family_tensors(family, "sd15", FAMILIES[family]))
    published = formats.read(tiny.write(tmp_path / "published.safetensors", tensors, "safetensors"))
    for name, dress in DRESSED.items():
        path = tiny.write(tmp_path / "model.bin", {k: v.clone() for k, v in dress(tensors).items()}, "zip")
        try:
            assert_same(formats.read(path), published)
        except Exception as error:
            raise AssertionError(name) from error


def test_sdxl_layers_are_numbered_by_their_place(tmp_path: Path) -> None:
    tensors = tiny.flat(tiny.family_tensors("faceid", "sdxl", 4))
    published = formats.read(tiny.write(tmp_path / "published.safetensors", tensors, "safetensors"))
    path = tiny.write(tmp_path / "model.safetensors", processors(tensors, "sdxl"), "safetensors")
    assert_same(formats.read(path), published)


@pytest.mark.parametrize("layout", get_args(tiny_pulid.Layout))
def test_wrapped_pulid(tmp_path: Path, layout: tiny_pulid.Layout) -> None:
    tensors = dict(tiny.flat(tiny_pulid.tensors("v1.1", layout)))
    published = formats.read(tiny.write(tmp_path / "a.safetensors", tensors, "safetensors"))
    wrapped = {f"module.{key}": value for key, value in tensors.items()}
    assert_same(formats.read(tiny.write(tmp_path / "b.bin", wrapped, "zip")), published)


FIGURES = {
    "storymaker": tiny.storymaker_tensors,
    "masterweaver": tiny.masterweaver_tensors,
    "w-plus": tiny.w_plus_tensors,
    "consistentid": fused_files.consistentid_tensors,
    "photomaker": lambda: fused_files.photomaker_tensors("v1"),
}


@pytest.mark.parametrize("family", FIGURES)
def test_other_families_as_their_training_names_them(tmp_path: Path, family: str) -> None:
    tensors = tiny.flat(FIGURES[family]())
    published = formats.read(tiny.write(tmp_path / "a.safetensors", tensors, "safetensors"))
    renamed = FROZEN | {re.sub(r"^ip_adapter\.", "adapter_modules.", key): value for key, value in tensors.items()}
    wrapped = {f"module.{key}": value for key, value in renamed.items()}
    assert_same(formats.read(tiny.write(tmp_path / "b.bin", wrapped, "zip")), published)
