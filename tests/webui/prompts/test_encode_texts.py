"""Texts encoded by the host, with its model in the shape that A1111 and Forge have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dp_adapter.errors import HostError
from dp_adapter.webui.prompts.encode_texts import text_encoder
from tests.webui import fake_webui


class SdConditioning(list[str]):
    def __init__(self, prompts: list[str], width: int, height: int) -> None:
        super().__init__(prompts)
        self.width, self.height = width, height


@pytest.fixture(autouse=True)
def host(tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    with fake_webui.installed(tmp_path) as fake:
        package: Any = fake["modules"]
        package.devices = SimpleNamespace(autocast=nullcontext)
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
