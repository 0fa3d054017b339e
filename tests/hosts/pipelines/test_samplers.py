"""Samplers made for a checkpoint's schedule, with a model that knows the answer: pictures are N(TARGET, 1/4)."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.errors import HostError
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, load, run
from dp_adapter.hosts.pipelines.samplers import SAMPLERS, scheduler

diffusers: Any = importlib.import_module("diffusers")  # its lazy names have no types
TARGET = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
SD15: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
DOUBLED = ("heun", "pndm")  # which call some timesteps twice


def config(**changes: Any) -> Any:
    return diffusers.DDIMScheduler.from_config({**SD15, **changes}).config


def alphas_of(made: Any) -> Tensor:
    return diffusers.DDIMScheduler.from_config({**SD15, "rescale_betas_zero_snr": made}).alphas_cumprod.double()


def sampled(
    made: Any, steps: int, v: bool, begin: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[float], list[float]]:
    """As a pipeline does it: what comes out, the timesteps, and how much noise there was in excess at each call.

    The model knows the schedule from the configuration, whatever the sampler makes of it.
    """
    alphas = alphas_of(v)
    made.set_timesteps(steps, device="cpu")
    timesteps, x = made.timesteps, (NOISE * made.init_noise_sigma).to(dtype)
    if begin is not None:
        timesteps = timesteps[begin * made.order :]
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(begin * made.order)
        x = made.add_noise(TARGET, NOISE, timesteps[:1]).to(dtype)
    options = {"generator": torch.Generator().manual_seed(3)}
    options = options if "generator" in inspect.signature(made.step).parameters else {}
    noises: list[float] = []
    for timestep in timesteps:
        seen = made.scale_model_input(x, timestep).double()
        low = int(timestep)
        alpha = torch.lerp(alphas[low], alphas[min(low + 1, 999)], float(timestep) - low).item()
        a, s = alpha**0.5, (1 - alpha) ** 0.5
        x0 = (a / 4 * seen + s * s * TARGET) / (alpha / 4 + s * s)
        noises.append(float((seen - a * TARGET).std()) / (alpha / 4 + s * s) ** 0.5)
        output = (a * seen - x0) / s if v else (seen - a * x0) / s
        x = made.step(output.to(dtype), timestep, x, return_dict=False, **options)[0]
    return x.double(), [float(one) for one in timesteps], noises


@pytest.mark.parametrize("name", SAMPLERS)
def test_from_pure_noise_at_any_number_of_steps(name: str) -> None:
    for steps in (1, 2, 3, 4, 21, 25, 50):
        made = scheduler(name, config(**ZERO_SNR))
        x, timesteps, noises = sampled(made, steps, v=True)
        assert timesteps[0] == 999 and timesteps[-1] <= 1000 / steps + 20, (steps, timesteps)
        assert len(set(timesteps)) == steps
        assert len(timesteps) == {"heun": 2 * steps - 1, "pndm": steps + (steps > 1)}.get(name, steps)
        spread = float((x - TARGET).std()) / 0.5
        assert 0.09 < spread < 1.15, f"{steps} steps leave {spread:.2f} of the spread"
        assert spread > 0.6 or steps < 25
        # What the model is shown has as much noise as its timestep says; the schedule is the checkpoint's.
        assert all(0.6 < noise < 1.3 for noise in noises) or steps < 7, noises


@pytest.mark.parametrize("name", ["heun", "pndm", "ddim", "euler"])
def test_pure_noise_in_half_precision(name: str) -> None:
    x, _, _ = sampled(scheduler(name, config(**ZERO_SNR)), 25, v=True, dtype=torch.float16)
    wanted, _, _ = sampled(scheduler(name, config(**ZERO_SNR)), 25, v=True)
    assert float((x - wanted).abs().max()) < 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_model_that_predicts_noise_has_the_webuis_timesteps(name: str) -> None:
    class_name, changes = SAMPLERS[name]
    for steps in (2, 3, 21, 50):
        ours = scheduler(name, config())
        theirs = getattr(diffusers, class_name).from_config(config(), **changes)
        for one in (ours, theirs):
            one.set_timesteps(steps)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        if hasattr(theirs, "sigmas"):
            assert torch.equal(ours.sigmas, theirs.sigmas)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 60])
def test_a_model_that_predicts_noise_at_the_ends(name: str, steps: int) -> None:
    x, timesteps, _ = sampled(scheduler(name, config()), steps, v=False)
    assert float((x - TARGET).std()) < 0.6
    if steps == 1:
        assert timesteps == [999]


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_timesteps(name: str) -> None:
    for predicted in ({}, ZERO_SNR):
        made = scheduler(name, config(**predicted))
        made.set_timesteps(1000)
        assert torch.equal(made.timesteps.unique().round().long(), torch.arange(1000)) or "karras" in name
        assert made.timesteps[0] == 999 and made.timesteps[-1] == 0


@pytest.mark.parametrize("predicted", [{}, ZERO_SNR])
@pytest.mark.parametrize("name", SAMPLERS)
def test_from_a_picture_the_noise_is_that_of_the_timestep(name: str, predicted: dict[str, Any]) -> None:
    for steps, begin in ((2, 1), (4, 2), (8, 6), (25, 10)):
        x, timesteps, noises = sampled(scheduler(name, config(**predicted), begin), steps, bool(predicted), begin)
        # It begins with the picture itself, which is all noise and no spread.
        assert noises[0] < 1.1 and float((x - TARGET).std()) < 0.6
        assert all(noise < 1.25 for noise in noises), (steps, timesteps, noises)


def test_what_a_sampler_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError("index 26 is out of bounds")

    monkeypatch.setattr(diffusers.DDIMScheduler, "step", broken)
    with pytest.raises(HostError, match=r"'ddim'.*IndexError: index 26 is out.*Take another sampler, such as euler,"):
        sampled(scheduler("ddim", config()), 4, v=False)

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(diffusers.DDIMScheduler, "step", full)
    with pytest.raises(MemoryError):
        scheduler("ddim", config()).step(NOISE, 1, NOISE)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pictures_of_a_model_that_knows_pure_noise(tiny_folder: Path, name: str) -> None:
    pipeline = load(tiny_folder, "cpu")
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, **ZERO_SNR)
    init = np.full((64, 64, 3), 120, np.uint8)
    half = np.repeat(np.array([[255], [0]], np.uint8), 32, 0).repeat(64, 1)
    for steps in (1, 2, 21):
        job = DiffusersJob("a cat", width=64, height=64, steps=steps, guidance=3.0, sampler=name)
        assert run(pipeline, job)[0].shape == (64, 64, 3)
    for one in (replace(job, init=init, strength=0.1), replace(job, steps=2, init=init, mask=half, strength=1.0)):
        assert run(pipeline, one)[0].shape == (64, 64, 3)
