"""Trains models/preview_faces.onnx: faces in the blurred, noisy pictures that a forming picture decodes to.

    python -m tools.train_preview --assets ../shared/assets --out out/preview [--steps 3200]

From the public-domain portraits alone, without the people of the test portraits. About 30 minutes on one CPU core and
one more that makes the scenes. tools/export_preview.py then writes the file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.scenes import CutOut, PlacedFace, Random, compose_scene, draw_behind, frequencies
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_parsing import SelfieParser
from dp_adapter.identity.pictures.picture_files import Picture
from tools.preview_net import PreviewNet

SIDE, STRIDE = 128, 4
BATCH = 32
Sample: TypeAlias = "tuple[Floats, Floats, Floats, Floats]"


def load_portraits(assets: Path, out: Path) -> list[CutOut]:
    """The portraits of people who are not among the test portraits; masks by the shipped parser, kept in `out`."""
    data = np.load(assets / "portraits" / "portraits_192x240.npz")
    tested = {line.split("\t")[0] for line in (assets / "test_portraits" / "people.tsv").read_text().splitlines()}
    cache, parser = out / "masks.npz", SelfieParser()
    masks = dict(np.load(cache)) if cache.is_file() else {}
    portraits: list[CutOut] = []
    made: dict[str, list[Picture]] = {"face": [], "person": []}
    for i, name in enumerate(data["person"].tolist()):
        start, stop = data["jpeg_offsets"][i : i + 2].tolist()
        bgr = cv2.imdecode(data["jpeg"][start:stop], cv2.IMREAD_COLOR)
        picture = np.ascontiguousarray(np.asarray(bgr, np.uint8)[..., ::-1])
        x, y, width, height = data["face_box"][i].tolist()
        face = Face(np.array([x, y, x + width, y + height], np.float32), data["landmarks"][i], 1.0)
        if not masks:
            parts = parser.parse(picture, face)
            made["face"].append((parts["face"] * 255).round().astype(np.uint8))
            made["person"].append((255 - parts["background"] * 255).round().astype(np.uint8))
        own = {key: np.asarray((masks or made)[key][i], np.float32) / np.float32(255) for key in made}
        if name not in tested:
            portraits.append(CutOut(picture, own["person"], own["face"], face.box, face.points))
    if not masks:
        np.savez_compressed(cache, face=np.stack(made["face"]), person=np.stack(made["person"]))
    return portraits


class Scenes(IterableDataset[Sample]):
    """Endless pictures [3, S, S] with masks [S, S], centres [S/4, S/4], boxes and points [14, S/4, S/4]."""

    def __init__(self, portraits: Sequence[CutOut], seed: int) -> None:
        self._portraits = portraits
        self._seed = seed

    def __iter__(self) -> Iterator[Sample]:
        cv2.setNumThreads(1)
        random = np.random.default_rng(self._seed)
        while True:
            picture, placed = draw_scene(random, self._portraits)
            told = targets(placed)
            for _ in range(2):  # a scene takes longer to make than to spoil
                noised = degrade(random, picture)
                yield np.ascontiguousarray(np.moveaxis(noised, -1, 0)), *told


def draw_scene(random: Random, portraits: Sequence[CutOut]) -> tuple[Floats, list[PlacedFace]]:
    count = int(random.choice([0, 1, 2, 3, 4], p=[0.2, 0.36, 0.18, 0.13, 0.13]))
    chosen = [portraits[int(i)] for i in random.integers(0, len(portraits), count)]
    tallest = 0.65 if count < 2 else 0.45
    heights = np.exp(random.uniform(np.log(0.06), np.log(tallest), count)).tolist()
    return compose_scene(random, chosen, heights, draw_faceless(random, portraits))


def draw_faceless(random: Random, portraits: Sequence[CutOut]) -> Floats:
    """A picture without a face: made up, often with patches of clothes, flags and hands from below portraits' chins."""
    picture = draw_behind(random, SIDE)
    for _ in range(int(random.choice([0, 1, 3, 6], p=[0.4, 0.2, 0.2, 0.2]))):
        portrait = portraits[int(random.integers(0, len(portraits)))]
        chin = float(portrait.box[3]) + 0.1 * float(portrait.box[3] - portrait.box[1])
        rest = portrait.picture[int(chin) :]
        if min(rest.shape[:2]) < 24:
            continue
        height, width = (int(random.uniform(0.4, 1.0) * length) for length in rest.shape[:2])
        top, left = (int(random.integers(0, a - b + 1)) for a, b in zip(rest.shape, (height, width), strict=False))
        part = rest[top : top + height, left : left + width].astype(np.float32) / np.float32(255)
        if random.random() < 0.5:
            part = part[:, ::-1]
        if random.random() < 0.4:
            part = part[..., np.argsort(random.random(3))]  # clothes of other colours
        size = int(SIDE * np.exp(random.uniform(np.log(0.15), 0.1)))
        patch = cv2.resize(np.ascontiguousarray(part), (size, size), interpolation=cv2.INTER_AREA)
        shift = [int(random.integers(-size // 2, SIDE - size // 2)) for _ in range(2)]
        move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
        cv2.warpAffine(patch, move, (SIDE, SIDE), dst=picture, borderMode=cv2.BORDER_TRANSPARENT)
    return picture


def degrade(random: Random, picture: Floats) -> Floats:
    """The picture as x̂0 might look: one of the ways of benchmarks/scenes.py, or several, seen whole or from near."""
    zoom = 1.0 if random.random() < 0.6 else float(np.exp(random.uniform(0, np.log(6))))
    if random.random() < 0.3:
        contrast, shift = np.float32(random.uniform(0.5, 1.4)), np.float32(random.normal(0, 0.06))
        picture = (picture - picture.mean()) * contrast + picture.mean() + shift
    if random.random() < 0.4:
        picture = estimate(random, picture)
    else:
        if random.random() < 0.55:
            picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), random.uniform(0.2, 4.0) * zoom**0.5), np.float32)
        level = np.float32(random.uniform(0, 0.4) * random.random() ** 0.5)
        cell = zoom * float(random.choice([0.25, 0.5, 1, 2, 2, 2]))
        picture = np.asarray(picture + level * draw_grain(random, max(cell, 1.0), min(1.0, cell)), np.float32)
    if random.random() < 0.3:
        small = cv2.resize(picture, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA)
        way = int(random.choice([cv2.INTER_LINEAR, cv2.INTER_NEAREST, cv2.INTER_CUBIC]))
        picture = np.asarray(cv2.resize(small, (SIDE, SIDE), interpolation=way), np.float32)
    return ((picture.clip(0, 1) * 255).round() / 255).astype(np.float32)


def draw_grain(random: Random, cell: float, strength: float) -> Floats:
    """Noise [S, S, 3] in cells of `cell` px."""
    side = max(2, round(SIDE / cell))
    field = random.normal(0, strength, (side, side, 1 if random.random() < 0.1 else 3)).astype(np.float32)
    way = cv2.INTER_NEAREST if random.random() < 0.3 else cv2.INTER_LINEAR if random.random() < 0.7 else cv2.INTER_CUBIC
    large = np.asarray(cv2.resize(field, (SIDE, SIDE), interpolation=way), np.float32)
    return large if large.ndim == 3 else large[..., None]


def estimate(random: Random, picture: Floats) -> Floats:
    """A linear estimate that keeps frequencies below a random one, with the noise that then remains."""
    at = frequencies(SIDE)[..., None]
    edge = float(np.exp(random.uniform(np.log(2.5), np.log(48))))
    mean = picture.mean((0, 1), keepdims=True)
    spread = max(float(picture.std()), 0.02) * random.uniform(0.8, 1.2)
    power = 1 / at**2
    power *= spread**2 * SIDE * SIDE / (2 * power.sum())
    noise = power.max() / edge**2
    noisy = picture - mean + random.normal(0, noise**0.5, picture.shape).astype(np.float32)
    spectrum = np.fft.rfft2(noisy, axes=(0, 1)) * (power / (power + noise))
    return (np.fft.irfft2(spectrum, (SIDE, SIDE), axes=(0, 1)) + mean).astype(np.float32)


def targets(placed: Sequence[PlacedFace]) -> tuple[Floats, Floats, Floats]:
    """What the network is to say: see `Scenes`. Boxes and points are 0 where no face's centre is near."""
    side = SIDE // STRIDE
    mask, centres = np.zeros((SIDE, SIDE), np.float32), np.zeros((side, side), np.float32)
    values = np.zeros((14, side, side), np.float32)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    for face in placed:
        mask = np.maximum(mask, face.face)
        middle, size = (face.box[:2] + face.box[2:]) / 2, face.box[2:] - face.box[:2]
        if face.face.sum() < 0.35 * float(size.prod()):
            continue  # mostly hidden
        dx, dy = x - (middle[0] / STRIDE - 0.5), y - (middle[1] / STRIDE - 0.5)
        reach = max(0.6, float(size.prod()) ** 0.5 / STRIDE / 7)
        heat = np.exp(-(dx**2 + dy**2) / (2 * reach**2))
        column, row = (int(v) for v in (middle / STRIDE).clip(0, side - 1))
        heat[row, column] = 1
        points = ((face.points - middle) / size).reshape(10)
        told = np.concatenate(
            [np.stack([-dx, -dy]), np.broadcast_to(np.log(size / SIDE)[:, None, None], (2, side, side))]
        )
        told = np.concatenate([told, np.broadcast_to(points[:, None, None], (10, side, side))])
        values = np.where(heat > np.maximum(centres, 0.3), told, values).astype(np.float32)
        centres = np.maximum(centres, heat)
    return mask, centres, values


def loss_of(heads: Tensor, logits: Tensor, batch: Sequence[Tensor]) -> Tensor:
    """Focal loss of centres (Law & Deng, CornerNet, eq. 1), L1 of boxes and points, cross-entropy and Dice of masks."""
    _, mask, centres, values = batch
    large = nn.functional.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)[:, 0]
    found = heads[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = centres == 1
    focal = torch.where(
        peak, -((1 - found) ** 2) * found.log(), -((1 - centres) ** 4) * found**2 * (1 - found).log()
    ).sum() / peak.sum().clamp(min=1)
    near = centres * (centres > 0.3)
    scale = torch.tensor([0.3, 0.3, 1, 1, *[2.0] * 10])[None, :, None, None]
    regression = ((heads[:, 1:] - values).abs() * scale * near[:, None]).sum() / near.sum().clamp(min=1)
    entropy = nn.functional.binary_cross_entropy_with_logits(large, mask)
    shared = (large.sigmoid() * mask).sum((1, 2))
    dice = 1 - (2 * shared + 20) / (large.sigmoid().sum((1, 2)) + mask.sum((1, 2)) + 20)
    return focal + 0.5 * regression + 4 * entropy + dice.mean()


def train(portraits: Sequence[CutOut], network: PreviewNet, args: argparse.Namespace) -> PreviewNet:
    torch.set_num_threads(1)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.rate, args.steps, pct_start=0.1)
    loader = DataLoader(Scenes(portraits, args.seed), BATCH, num_workers=1, prefetch_factor=8)
    start, mean = time.monotonic(), 0.0
    for step, batch in zip(range(args.steps), loader, strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            heads, logits = network(batch[0].contiguous(memory_format=torch.channels_last))
        loss = loss_of(heads.float(), logits.float(), batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        mean = 0.99 * mean + 0.01 * loss.item() if step else loss.item()
        if step % 100 == 0:
            print(f"{step} loss {mean:.3f} {time.monotonic() - start:.0f} s", flush=True)
        if step % 100 == 99:
            torch.save(network.state_dict(), args.out / "preview.pt")
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--start", type=Path, help="weights to go on from, in another cycle of the learning rate")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    network = PreviewNet()
    if args.start:
        network.load_state_dict(torch.load(args.start, weights_only=True))
    train(load_portraits(args.assets, args.out), network, args)
    torch.save(network.state_dict(), args.out / "preview.pt")


if __name__ == "__main__":
    main()
