"""The small base's recipe: where its autoencoder starts, its pool of scenes, and a run that goes on."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.small_base import base, mixing, pool, portraits, scenes, vae


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


def test_an_autoencoder_learns_its_teachers_latents(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = vae.new(vae.WIDER)
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    net = vae.new()
    teacher = vae.taught_by(tmp_path / "wide.pt", net)
    assert torch.equal(net.decoder.mid_block.resnets[0].conv1.weight, wide.decoder.mid_block.resnets[0].conv1.weight)
    pictures = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4) * 2 - 1, size=64, mode="bilinear")
    torch.nn.init.ones_(net.encoder.conv_out.bias)
    optimiser = torch.optim.SGD([net.encoder.conv_out.bias], 60.0)
    told: list[dict[str, float]] = []
    for _ in range(6):
        losses = vae.loss_of(net, vae.SFace(), pictures, torch.zeros(2, 5, 2), torch.zeros(2), 0.0, teacher)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        told.append({name: loss.item() for name, loss in losses.items()})
    assert "size" not in told[0] and all(p.grad is None for p in teacher.net.parameters())
    assert told[-1]["followed"] < 0.5 * told[0]["followed"]


def test_scenes_in_the_pool_come_back(tmp_path: Path, people: list[portraits.Portrait]) -> None:
    random = np.random.default_rng(1)
    plans = tuple(scenes.planned(random, people) for _ in range(4))
    chunk = pool.Chunk(torch.randn(4, 4, 16, 16).half(), torch.rand(4, 2, 16, 16).half(), plans)
    pool.write(tmp_path / "0.safetensors", chunk)
    back = pool.read(tmp_path / "0.safetensors")
    assert back.plans == plans and torch.equal(back.latents, chunk.latents) and torch.equal(back.faces, chunk.faces)


def test_mixed_faces_come_back_with_vectors_of_their_own(tmp_path: Path, people: list[portraits.Portrait]) -> None:
    crowd = mixing.crowd(np.random.default_rng(4), people, 3)
    assert all("+" in one.person for one in crowd)
    assert [np.linalg.norm(one.sface) for one in crowd] == pytest.approx([1, 1, 1], abs=1e-5)
    plans = tuple(scenes.planned(np.random.default_rng(1), crowd) for _ in range(2))
    vectors = torch.from_numpy(np.stack([one.sface for one in crowd]))
    latents, faces = torch.randn(2, 4, 16, 16).half(), torch.rand(2, 2, 16, 16).half()
    pool.write(tmp_path / "mixed0000.safetensors", pool.Chunk(latents, faces, plans, vectors))
    back = pool.read(tmp_path / "mixed0000.safetensors")
    assert back.vectors is not None and torch.equal(back.vectors, vectors)


def test_a_mixed_face_has_the_others_features_in_a_tone_between(people: list[portraits.Portrait]) -> None:
    one, other = people[0], replace(people[1], picture=people[1].picture.copy())
    other.picture[148:160, 120:168] = 250  # a mouth; portraits are widened by 48 columns
    other.picture[..., 0] *= 0.5
    mixed = mixing.blended(one, other, 0.5)
    assert mixed is not None
    red = [float(picture[130, 144, 0]) for picture in (one.picture, mixed, other.picture)]
    assert red[0] > red[1] > red[2]
    assert mixed[154, 144, 2] > one.picture[154, 144, 2] + 20
    assert np.abs(mixed - one.picture)[200:].max() == 0  # clothes are the first one's


def test_the_middle_of_a_face_counts_more() -> None:
    points = torch.tensor([[[40.0, 40], [60, 40], [50, 50], [42, 60], [58, 60]]])
    weights = vae.around(points, 128)
    assert weights.shape == (1, 1, 128, 128)
    assert weights[0, 0, 50, 50] > 0.99 and 0.5 < weights[0, 0, 50, 70] < 0.8 and weights[0, 0, 110, 110] < 0.01


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
    run = Namespace(**told, minutes=1e-6, ema=0.9, threads=1, seed=0, compile=False)
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
