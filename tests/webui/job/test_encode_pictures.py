"""Pictures encoded by the host's VAE, whose function draws from a distribution as the hosts' does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.webui.job.encode_pictures import picture_encoder
from tests.webui import fake_webui

ASKED: list[Any] = []


def images_tensor_to_samples(image: Tensor, approximation: int | None, model: Any) -> Tensor:
    """0..1 -> latents, as modules/sd_samplers_common.py in all hosts."""
    ASKED.append((approximation, model))
    small = torch.nn.functional.avg_pool2d(image * 2 - 1, 8)
    mean = torch.cat([small, small[:, :1]], 1)
    return (mean + torch.randn(mean.shape)).half()


@pytest.fixture(autouse=True)
def host(tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    with fake_webui.installed(tmp_path) as fake:
        package: Any = fake["modules"]
        package.devices = SimpleNamespace(autocast=nullcontext)
        package.sd_samplers_common = SimpleNamespace(images_tensor_to_samples=images_tensor_to_samples)
        yield fake


def test_always_alike_and_without_a_trace() -> None:
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
