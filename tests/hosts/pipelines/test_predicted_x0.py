"""What a pipeline predicts at each call, against what its own schedulers say they predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dp_adapter.errors import SettingsError, WeightsError
from dp_adapter.hosts.pipelines import load_pipeline, preview_decoders
from dp_adapter.hosts.pipelines.latent_preview import LARGEST, linear, pictures, shrunk
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
from dp_adapter.hosts.pipelines.predicted_x0 import predicted, report_predictions

BATCH = 2


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> load_pipeline.Pipeline:
    return load_pipeline.load(tiny_folder, "cpu", "float32")


def watched(
    pipeline: load_pipeline.Pipeline, job: DiffusersJob
) -> tuple[list[tuple[Tensor, float]], list[Tensor], list[str]]:
    """x0 and progress of every call; what the scheduler says; the order of things."""
    calls: list[tuple[Tensor, float]] = []
    own: list[Tensor] = []
    order: list[str] = []

    def after(x0: Tensor, progress: float) -> None:
        order.append("after")
        calls.append((x0.clone(), progress))

    def around(running: Any) -> Any:
        step = running.scheduler.step

        def spied(*args: Any, **kwargs: Any) -> Any:
            kwargs["return_dict"] = True
            result = step(*args, **kwargs)
            own.append(result.pred_original_sample.clone())
            return (result.prev_sample,)

        running.scheduler.step = spied
        return report_predictions(running, lambda: order.append("before"), after)

    load_pipeline.run(pipeline, job, around=around)
    return calls, own, order


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "euler_a"])
def test_as_the_scheduler_says(pipeline: load_pipeline.Pipeline, sampler: str) -> None:
    hooks = len(pipeline.unet._forward_hooks), len(pipeline.unet._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
    job = DiffusersJob("a face", width=64, height=96, steps=4, guidance=1.0, sampler=sampler, batch=BATCH)
    calls, own, order = watched(pipeline, job)
    assert len(calls) == len(own) == 4 and order == ["before", "after"] * 4
    for (x0, _), said in zip(calls, own, strict=True):
        assert x0.shape == (BATCH, 4, 12, 8)
        scale = said.abs().mean()
        # between two timesteps, the scheduler's sigma and ours are interpolated in another way
        assert (x0 - said).abs().mean() < (1e-4 if sampler in ("ddim", "ddpm") else 2e-2) * scale
    progress = [at for _, at in calls]
    assert progress == sorted(progress) and 0 <= progress[0] < 0.3 and progress[-1] > 0.6
    assert hooks == (len(pipeline.unet._forward_hooks), len(pipeline.unet._forward_pre_hooks))  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m_sde_karras", "unipc", "pndm", "lcm"])
def test_every_sampler_is_told(pipeline: load_pipeline.Pipeline, sampler: str) -> None:
    calls: list[tuple[Tensor, float]] = []
    job = DiffusersJob("a face", width=64, height=64, steps=4, guidance=3.0, sampler=sampler)
    load_pipeline.run(
        pipeline, job, around=lambda p: report_predictions(p, lambda: None, lambda x0, at: calls.append((x0, at)))
    )
    assert len(calls) >= 4 and all(x0.shape == (1, 4, 8, 8) and torch.isfinite(x0).all() for x0, _ in calls)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_kind_of_prediction(kind: str) -> None:
    alphas = torch.linspace(0.99, 0.01, 100)
    x0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    signal, sigma = alphas[40].sqrt(), (1 - alphas[40]).sqrt()
    noisy = signal * x0 + sigma * noise
    output = {"epsilon": noise, "v_prediction": signal * noise - sigma * x0, "sample": x0}[kind]
    assert torch.allclose(predicted(noisy, output, 40.0, alphas, kind), x0, atol=1e-4)


def test_decoders(pipeline: load_pipeline.Pipeline, tmp_path: Path) -> None:
    latents = torch.randn(BATCH, 4, 6, 8)
    full = preview_decoders.decoder(pipeline, "auto", [])(latents)  # the tiny VAE is as cheap as any
    assert len(full) == BATCH and full[0].shape == (48, 64, 3) and full[0].dtype == np.uint8
    rough = preview_decoders.decoder(pipeline, "approx", [])(latents)
    assert rough[0].shape == (6, 8, 3)
    expected = pictures(linear(latents, "sd15"))
    assert all(map(np.array_equal, rough, expected))
    with pytest.raises(SettingsError, match="models/VAE-taesd"):
        preview_decoders.decoder(pipeline, "taesd", [tmp_path])
    folder = tmp_path / preview_decoders.FOLDER
    folder.mkdir()
    torch.save({"1.weight": torch.zeros(1)}, folder / "taesd_decoder.pth")
    with pytest.raises(WeightsError, match="is not TAESD"):
        preview_decoders.decoder(pipeline, "taesd", [tmp_path])


def test_taesd_as_its_own_code_computes_it(tmp_path: Path) -> None:
    """madebyollin/taesd's decoder, written out; its file has the clamp as layer 0."""

    class Clamp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x / 3) * 3

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
            self.conv = nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU(), conv[2])
            self.fuse = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.fuse(self.conv(x) + x)

    def up() -> list[nn.Module]:
        return [Block(), Block(), Block(), nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]

    torch.manual_seed(0)
    layers = [Clamp(), nn.Conv2d(4, 64, 3, padding=1), nn.ReLU(), *up(), *up(), *up(), Block()]
    official = nn.Sequential(*layers, nn.Conv2d(64, 3, 3, padding=1))
    torch.save(official.state_dict(), tmp_path / "taesd_decoder.pth")
    latents = torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        ours = preview_decoders.load_taesd(tmp_path / "taesd_decoder.pth").decode(latents).sample
        assert torch.allclose(ours, official(latents) * 2 - 1, atol=1e-5)


def test_large_pictures_are_decoded_small() -> None:
    assert shrunk(torch.zeros(1, 4, LARGEST, 40)).shape[-2:] == (LARGEST, 40)
    assert shrunk(torch.zeros(1, 4, 2 * LARGEST, 40)).shape[-2:] == (LARGEST, 20)
