"""The small base's recipe: where its autoencoder starts, its pool of scenes, and a run that goes on."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.small_base import base, pool, portraits, scenes, vae


@pytest.fixture(scope="module")
def people() -> list[portraits.Portrait]:
    """Drawn heads: an oval of skin with hair on a bust."""
    y, x = np.mgrid[0:240, 0:192]
    labels = np.zeros((240, 192), np.uint8)
    labels[np.hypot((x - 96) / 1.0, (y - 80) / 1.2) < 62] = 1
    labels[np.hypot((x - 96) / 0.8, (y - 95) / 1.1) < 55] = 3
    labels[y > 170] = 4
    palette = np.array([[90, 90, 200], [60, 30, 20], [220, 170, 140], [220, 170, 140], [40, 40, 60], [0, 0, 0]])
    points = np.array([[75, 85], [117, 85], [96, 105], [80, 130], [112, 130]], np.float32)
    box = np.array([52, 35, 88, 120], np.float32)
    random = np.random.default_rng(0)
    return [
        portraits.of(
            f"p{i}",
            i,
            palette[labels].astype(np.uint8),
            labels,
            points,
            box,
            random.normal(size=128).astype(np.float32),
        )
        for i in range(3)
    ]


def test_the_autoencoder_starts_from_the_mean_colours() -> None:
    torch.manual_seed(0)
    net = vae.new().eval()
    colours = torch.tensor([[-0.5, 0.2, 0.7], [0.8, -0.8, 0.0]])
    pictures = colours[:, :, None, None].expand(2, 3, 128, 128).contiguous()
    with torch.no_grad():
        latents = net.encode(pictures).latent_dist.mean
        decoded = net.decode(latents).sample
    assert (latents[:, :3, 8, 8] - colours).abs().max() < 0.1
    assert (decoded[:, :, 64, 64] - colours).abs().max() < 0.15


def test_whitened_latents_have_the_deviation_that_hosts_expect() -> None:
    torch.manual_seed(0)
    net = vae.new().eval()
    pictures = torch.nn.functional.interpolate(torch.rand(6, 3, 8, 8) * 2 - 1, size=64, mode="bilinear")
    with torch.no_grad():
        before = net.decode(net.encode(pictures).latent_dist.mean).sample
        vae.whiten(net, pictures)
        latents = net.encode(pictures).latent_dist.mean
        after = net.decode(latents).sample
    flat = latents.permute(1, 0, 2, 3).flatten(1) * 0.18215
    assert torch.cov(flat) == pytest.approx(torch.eye(4).numpy(), abs=1e-2)
    assert (before - after).abs().max() < 1e-2


def test_scenes_in_the_pool_come_back(tmp_path: Path, people: list[portraits.Portrait]) -> None:
    random = np.random.default_rng(1)
    plans = tuple(scenes.planned(random, people) for _ in range(4))
    chunk = pool.Chunk(torch.randn(4, 4, 16, 16).half(), torch.rand(4, 2, 16, 16).half(), plans)
    pool.write(tmp_path / "0.safetensors", chunk)
    back = pool.read(tmp_path / "0.safetensors")
    assert back.plans == plans and torch.equal(back.latents, chunk.latents) and torch.equal(back.faces, chunk.faces)


def test_a_face_mask_is_the_owners_face(people: list[portraits.Portrait]) -> None:
    person = scenes.Person(0, "red", "on the left", None, None, None, False)
    plan = scenes.Plan("portrait", "blue", "plain", False, (person,))
    scene = scenes.composed(np.random.default_rng(2), plan, people)
    masks = pool.face_masks(scene.labels, scene.owner)
    x, y = scene.points[0].mean(0) / 8
    assert masks[0, int(y), int(x)] == 1 and masks[0, :, -1].max() == 0 and masks[1].max() == 0


def test_a_run_goes_on(tmp_path: Path, people: list[portraits.Portrait], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BATCH", 2)

    def load(_path: Path) -> list[portraits.Portrait]:
        return people * 10  # the first person is held out

    monkeypatch.setattr(portraits, "load", load)
    random = np.random.default_rng(3)
    plans = tuple(scenes.planned(random, people) for _ in range(4))
    (tmp_path / "pool").mkdir()
    pool.write(
        tmp_path / "pool" / "0.safetensors", pool.Chunk(torch.randn(4, 4, 16, 16), torch.rand(4, 2, 16, 16), plans)
    )
    told = {"portraits": Path("unused"), "pool": tmp_path / "pool", "out": tmp_path, "cooldown": 0.5, "rate": 1e-3}
    run = Namespace(**told, minutes=1e-6, ema=0.9, threads=1, seed=0)
    base.train(run)
    first = torch.load(tmp_path / "state.pt", weights_only=True)
    base.train(run)  # its time is spent: nothing more happens
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == first["step"] == 1
    base.train(Namespace(**(vars(run) | {"minutes": first["spent"] / 60 + 1e-6})))
    second = torch.load(tmp_path / "state.pt", weights_only=True)
    assert second["step"] == 2 and second["spent"] > first["spent"]
    key = "unet.conv_in.weight"
    assert not torch.equal(first["model"][key], second["model"][key])
    assert not torch.equal(second["ema"][key], second["model"][key])
