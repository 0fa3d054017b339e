"""The tiny base: its autoencoder really transmits pictures, its UNet reacts to prompt and identity, all repeatable."""

import hashlib
import importlib
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.core.injection import Identity, Injection
from dp_adapter.core.types import Tokens
from dp_adapter.hosts.attach.diffusers import attach, base_of, pipeline_rows
from dp_adapter.hosts.attach.sites import site_names
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, load, run
from dp_adapter.weights.families import own_adapter
from dp_adapter.weights.files import open_weights
from tools.tiny_base import random_weights, tiny_pipeline, tiny_vae

diffusers: Any = importlib.import_module("diffusers")  # its lazy names have no types
JOB = DiffusersJob("a photo of a cat", width=128, height=128, steps=8, guidance=5.0, sampler="ddim")
NUMBERS = [0.5463532, 1.5183194, 1.0558684, 0.7610788, 1.4562622]


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> Any:
    return load(tiny_folder, "cpu")


@pytest.fixture(scope="module")
def vae() -> Any:
    made = diffusers.AutoencoderKL(**tiny_vae.CONFIG)
    tiny_vae.construct(made)
    return made


def interpolated(cells: Tensor) -> Tensor:
    """Three times doubled bilinearly, the border repeated."""
    kernel = torch.tensor([0.25, 0.5, 0.25])
    weight = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    for _ in range(3):
        doubled = cells.repeat_interleave(2, -1).repeat_interleave(2, -2)
        padded = torch.nn.functional.pad(doubled, (1, 1, 1, 1), mode="replicate")
        cells = torch.nn.functional.conv2d(padded, weight, groups=3)
    return cells


@pytest.mark.parametrize("size", [(64, 64), (128, 192), (256, 256)])
@pytest.mark.parametrize("contrast", [1.0, 3.0])
def test_autoencoder_transmits_the_mean_colour_of_every_cell(vae: Any, size: tuple[int, int], contrast: float) -> None:
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    picture = contrast * torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    cells = torch.nn.functional.avg_pool2d(picture, 8)
    with torch.no_grad():
        latents = vae.encode(picture).latent_dist.sample(torch.Generator().manual_seed(2))
        decoded = vae.decode(latents).sample
    scaled = latents * vae.config.scaling_factor / tiny_vae.GAIN
    torch.testing.assert_close(scaled[:, :3], cells, atol=1e-4, rtol=1e-3)
    error = (decoded - interpolated(cells)).square().mean()
    assert 10 * torch.log10(4 / error) > 60
    border = (decoded - interpolated(cells))[..., (0, -1), :].abs().max()
    assert border < 0.02, "the border is no darker"


def test_layout_and_cost_are_those_asked_for(pipeline: Any, tiny_folder: Path) -> None:
    assert base_of(pipeline.unet) == "sd15"
    assert len(pipeline.vae.config.block_out_channels) == 4 and pipeline.vae_scale_factor == 8
    assert sum(file.stat().st_size for file in tiny_folder.rglob("*.safetensors")) < 40e6


def test_building_again_changes_nothing_unless_asked(tmp_path: Path, tiny_folder: Path) -> None:
    first = contents(tiny_folder)
    stamps = {path: path.stat().st_mtime_ns for path in tiny_folder.rglob("*")}
    tiny_pipeline.build(tiny_folder)
    assert {path: path.stat().st_mtime_ns for path in tiny_folder.rglob("*")} == stamps
    assert contents(tiny_pipeline.build(tmp_path / "again")) == first
    other = contents(tiny_pipeline.build(tmp_path / "again", seed=1))
    changed = {name for name, digest in other.items() if first.get(name) != digest}
    assert {Path(name).parts[0] for name in changed} == {"unet", "text_encoder", "dp_adapter.json"}


def test_weights_are_the_same_numbers_everywhere() -> None:
    numbers = random_weights.uniform("conv_in.weight", 0, (5,), 1.0)
    assert numbers.tolist() == pytest.approx(NUMBERS, abs=1e-7)
    assert abs(random_weights.uniform("x", 3, (100, 100), 2.0).std() - 2) < 0.05


def test_samples_are_clouds_neither_flat_nor_noise(pipeline: Any) -> None:
    picture = run(pipeline, JOB)[0].astype(float)
    assert 10 < picture.std() < 70
    assert ((picture == 0) | (picture == 255)).mean() < 0.1
    cells = picture.reshape(16, 8, 16, 8, 3).mean((1, 3))
    steps = np.abs(np.diff(cells, axis=0)).mean()
    assert steps < 0.7 * cells.std(), "neighbouring cells belong together"


def test_prompt_and_seed_are_seen(pipeline: Any) -> None:
    cat = run(pipeline, JOB)[0].astype(float)
    for changes in ({"prompt": "an oil painting of the sea"}, {"seed": 1}, {"negative_prompt": "red"}):
        other = run(pipeline, replace(JOB, **changes))[0]
        assert np.abs(other - cat).mean() > 3


def test_identity_is_seen_and_leaves_the_layout(pipeline: Any, tiny_folder: Path, tmp_path: Path) -> None:
    checkpoint = own_adapter.read(
        open_weights(tiny_pipeline.identity_adapter(tmp_path / "tiny.safetensors", tiny_folder)), "dp_adapter", "tiny"
    )
    assert (checkpoint.base, checkpoint.encoders, checkpoint.tokens_per_photo) == ("sd15", ("sface",), 4)
    assert len(checkpoint.adapter.sites) == len(site_names("sd15"))

    def with_person(seed: int) -> np.ndarray:
        face = torch.nn.functional.normalize(torch.randn(1, 128, generator=torch.Generator().manual_seed(seed)))
        with torch.no_grad():
            cond, uncond = (checkpoint.adapter.projection(vector)[0] for vector in (face, torch.zeros_like(face)))
        injection = Injection((Identity(checkpoint.adapter, Tokens(cond, uncond)),))

        def around(running: Any) -> AbstractContextManager[object]:
            return attach(running.unet, injection, pipeline_rows(running))

        return run(pipeline, JOB, around=around)[0].astype(float)

    plain, one, two = run(pipeline, JOB)[0].astype(float), with_person(1), with_person(2)
    for first, second in ((plain, one), (plain, two), (one, two)):
        assert 3 < np.abs(first - second).mean() < 60
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.4


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
