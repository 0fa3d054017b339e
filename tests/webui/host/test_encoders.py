"""Texts and pictures encoded by the host, with its model in the shape that A1111 and Forge have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.errors import HostError
from dp_adapter.webui.host.encoders import picture_encoder, text_encoder
from tests.webui import fake_webui

ASKED: list[Any] = []


def images_tensor_to_samples(image: Tensor, approximation: int | None, model: Any) -> Tensor:
    """0..1 -> latents, drawn from a distribution as modules/sd_samplers_common.py in all hosts."""
    ASKED.append((approximation, model))
    small = torch.nn.functional.avg_pool2d(image * 2 - 1, 8)
    mean = torch.cat([small, small[:, :1]], 1)
    return (mean + torch.randn(mean.shape)).half()


class SdConditioning(list[str]):
    def __init__(self, prompts: list[str], width: int, height: int) -> None:
        super().__init__(prompts)
        self.width, self.height = width, height


@pytest.fixture(autouse=True)
def host(tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    with fake_webui.installed(tmp_path) as fake:
        package: Any = fake["modules"]
        package.devices = SimpleNamespace(autocast=nullcontext)
        package.sd_samplers_common = SimpleNamespace(images_tensor_to_samples=images_tensor_to_samples)
        package.prompt_parser = SimpleNamespace(SdConditioning=SdConditioning)
        vars(sys.modules["modules.shared"])["opts"] = SimpleNamespace(CLIP_stop_at_last_layers="2")
        yield fake


class Sd15:
    """A1111's and Forge's: a tensor in half precision. Text i is full of i."""

    chunks = 1

    def get_learned_conditioning(self, texts: SdConditioning) -> Any:
        self.asked = texts
        numbers = torch.arange(len(texts), dtype=torch.float16)
        return numbers[:, None, None].expand(-1, 77 * self.chunks, 6).requires_grad_()


class Sdxl(Sd15):
    """A dictionary, from Forge's engine, which is told the clip skip before."""

    clip_skip = 0

    def set_clip_skip(self, clip_skip: int) -> None:
        self.clip_skip = clip_skip

    @torch.inference_mode()
    def get_learned_conditioning(self, texts: SdConditioning) -> dict[str, Tensor]:
        crossattn: Tensor = super().get_learned_conditioning(texts)
        return {"crossattn": crossattn, "vector": torch.zeros(len(texts), 8)}


def job(model: Any) -> Any:
    return SimpleNamespace(sd_model=model, width=512, height=768)


@pytest.mark.parametrize("make", [Sd15, Sdxl])
def test_contexts_as_the_unet_gets_them(make: type[Sd15]) -> None:
    model = make()
    contexts = text_encoder(job(model))(["a man", "a woman"])
    assert contexts.dtype == torch.float32 and not contexts.requires_grad and not contexts.is_inference()
    assert contexts.shape == (2, 77, 6) and torch.equal(contexts[:, 5, 3], torch.tensor([0.0, 1.0]))
    assert model.asked == ["a man", "a woman"] and (model.asked.width, model.asked.height) == (512, 768)
    assert not isinstance(model, Sdxl) or model.clip_skip == 2


def test_nothing_is_encoded_before_it_is_asked_for() -> None:
    p = job(object())
    encode = text_encoder(p)
    p.sd_model = Sd15()
    assert encode(["a man"]).shape == (1, 77, 6)


def test_refusals() -> None:
    with pytest.raises(HostError, match="does not encode texts"):
        text_encoder(job(object()))(["a man"])
    model = Sd15()
    model.chunks = 2
    with pytest.raises(HostError, match="'a very long text…' is too long"):
        text_encoder(job(model))(["a man", "a very long text"])


def test_pictures_are_encoded_always_alike_and_without_a_trace() -> None:
    p = SimpleNamespace(sd_model="first")
    encode = picture_encoder(p)
    p.sd_model = "second"
    picture = np.full((64, 48, 3), 255, np.uint8)
    before = torch.random.get_rng_state()
    one, other = encode(picture), encode(picture)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, other) and one.shape == (4, 8, 6) and one.dtype == torch.float32
    assert ASKED[-1] == (0, "second"), "the VAE itself, of the model at work"
    expected = 1 + torch.randn((4, 8, 6), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one, expected, atol=2e-3, rtol=0)
