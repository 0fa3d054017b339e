"""Faces found in spoiled pictures, and how far their region is the clean picture's.

    python -m benchmarks.regions [--assets ../shared/assets] [--scenes 40] [--quick] [--harsher] [--side 512]

The test portraits are put into scenes at random places, 1 to 4 faces of 8 to 60 % of the picture's height, and
spoiled as benchmarks/scenes.py has it, at levels that stand for 15, 30 and 55 % of a run. The reference is the `face`
mask of the shipped parser on the clean picture. "found" counts boxes with an IoU of 0.35 or more; IoU is of masks cut
at one half, over the faces found. False faces are counted per picture, in the scenes and in pictures without a face.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from benchmarks import scenes
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_parsing import SelfieParser
from dp_adapter.identity.faces.multiscale_detection import iou
from dp_adapter.identity.faces.preview_faces import PreviewFinder
from dp_adapter.identity.pictures.picture_files import Picture, load_picture

MOMENTS = (15, 30, 55)
# Levels at the three moments: the noise's standard deviation in pictures of 0..1 (x̂0's error falls from about a third
# of the range to a tenth), the blur, or the moment itself.
KINDS: Mapping[str, tuple[scenes.Noise, tuple[float, float, float]]] = {
    "pixel": (scenes.pixel_noise, (0.30, 0.20, 0.10)),
    "cells": (scenes.cell_noise, (0.30, 0.20, 0.10)),
    "blocks": (scenes.block_noise, (0.30, 0.20, 0.10)),
    "blur": (scenes.blur, (0.60, 0.40, 0.20)),
    "wiener": (scenes.wiener, (0.15, 0.30, 0.55)),
    "latent": (scenes.latent_wiener, (0.15, 0.30, 0.55)),
}
HARSHER = 1.5  # factor on the first four kinds' levels with --harsher
BUCKETS = ((0.08, 0.15), (0.15, 0.30), (0.30, 0.60))
SAME = 0.35


@dataclass
class Tally:
    """What was seen of one kind, moment and size: found or not, and the IoU of each face found."""

    found: list[bool] = field(default_factory=list[bool])
    overlap: list[float] = field(default_factory=list[float])

    def line(self) -> str:
        if not self.found:
            return "–"
        if not self.overlap:
            return "0 %"
        tenth = np.percentile(self.overlap, 10)
        return f"{np.mean(self.found):.0%} · {np.mean(self.overlap):.2f} · {tenth:.2f}"


def load_portraits(assets: Path, parser: SelfieParser) -> list[scenes.CutOut]:
    detector = YuNet()
    portraits: list[scenes.CutOut] = []
    for file in sorted((assets / "test_portraits").glob("*.jpg")):
        picture = load_picture(file)
        face = detector.detect(picture)[0]
        parts = parser.parse(picture, face)
        portraits.append(scenes.CutOut(picture, 1 - parts["background"], parts["face"], face.box, face.points))
    return portraits


def find_references(
    clean: Picture, placed: Sequence[scenes.PlacedFace], parser: SelfieParser
) -> list[tuple[Face, Floats]]:
    """Each placed face with its region in the clean picture: as found there, else as placed."""
    found = YuNet().detect(clean)
    pairs: list[tuple[Face, Floats]] = []
    for each in placed:
        face = next((f for f in found if iou(f.box, each.box) > SAME), Face(each.box, each.points, 1.0))
        pairs.append((face, parser.parse(clean, face)["face"]))
    return pairs


def bucket(face: Face, side: int) -> int:
    height = float(face.box[3] - face.box[1]) / side
    return next((i for i, (_, high) in enumerate(BUCKETS) if height < high), len(BUCKETS) - 1)


def overlap(a: Floats, b: Floats) -> float:
    inside, either = (a > 0.5) & (b > 0.5), (a > 0.5) | (b > 0.5)
    return float(inside.sum() / max(1, either.sum()))


class Benchmark:
    def __init__(self, finder: PreviewFinder) -> None:
        self.finder = finder
        self.tallies: dict[tuple[str, int, int], Tally] = defaultdict(Tally)
        self.false: dict[tuple[str, int], list[int]] = defaultdict(list[int])
        self.empty: dict[tuple[str, int], list[int]] = defaultdict(list[int])

    def scene(self, kind: str, moment: int, spoiled: Picture, truth: Sequence[tuple[Face, Floats]]) -> None:
        faces = self.finder.detect(spoiled)
        used: set[int] = set()
        for reference, region in truth:
            place = max(range(len(faces)), key=lambda i: iou(faces[i].box, reference.box), default=None)
            tally = self.tallies[kind, moment, bucket(reference, spoiled.shape[0])]
            hit = place is not None and iou(faces[place].box, reference.box) > SAME
            tally.found.append(hit)
            if place is not None and hit:
                used.add(place)
                tally.overlap.append(overlap(self.finder.parse(spoiled, faces[place])["face"], region))
        self.false[kind, moment].append(len(faces) - len(used))

    def table(self) -> str:
        sizes = [f"{low:.0%} to {high:.0%}" for low, high in BUCKETS]
        lines = [f"| spoiled by | moment | {' | '.join(sizes)} | false | false, no face |", "|" + "---|" * 7]
        for kind, moment in self.false:
            cells = [self.tallies[kind, moment, size].line() for size in range(len(BUCKETS))]
            wrong = np.mean(self.false[kind, moment])
            empty = np.mean(self.empty[kind, moment] or [np.nan])
            lines.append(f"| {kind} | {moment} % | {' | '.join(cells)} | {wrong:.2f} | {empty:.2f} |")
        return "\n".join(lines)


def backgrounds(random: scenes.Random, count: int, side: int) -> list[Floats]:
    """Pictures without a face: made-up ones, pure grey, and scikit-image's photographs where it is installed."""
    pictures = [scenes.draw_behind(random, side) for _ in range(count)]
    pictures.append(np.full((side, side, 3), 0.5, np.float32))
    try:
        from skimage import data
    except ImportError:
        return pictures
    for photo in ("coffee", "chelsea", "rocket"):
        whole = np.asarray(getattr(data, photo)(), np.uint8)
        small = cv2.resize(whole, (side, side), interpolation=cv2.INTER_AREA)
        pictures.append(np.asarray(small, np.float32) / np.float32(255))
    return pictures


def draw_heights(random: scenes.Random) -> list[float]:
    """1 to 4 faces; with more of them the tallest is smaller, so that they find a place."""
    count = int(random.integers(1, 5))
    tallest = (0.6, 0.45, 0.35, 0.3)[count - 1]
    return np.exp(random.uniform(np.log(0.08), np.log(tallest), count)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path(__file__).parents[2] / "shared" / "assets")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--side", type=int, default=512, help="the preview's side in px; the scenes have 512")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="6 scenes")
    parser.add_argument("--harsher", action="store_true", help=f"levels times {HARSHER}")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    shipped = SelfieParser()
    portraits = load_portraits(args.assets, shipped)
    bench = Benchmark(PreviewFinder(YuNet(), shipped))
    random = np.random.default_rng(args.seed)
    count = 6 if args.quick else args.scenes
    for number in range(count):
        tall = draw_heights(random)
        chosen = [portraits[int(i)] for i in np.argsort(random.random(len(portraits)))[: len(tall)]]
        picture, placed = scenes.compose_scene(random, chosen, tall, scenes.draw_behind(random, 512))
        clean = _resize(scenes.to_picture(picture), args.side)
        truth = find_references(clean, [_scale(each, args.side / 512) for each in placed], shipped)
        for kind, moment, spoiled in _spoil(random, picture, args):
            bench.scene(kind, moment, _resize(spoiled, args.side), truth)
        print(f"scene {number + 1} of {count}", file=sys.stderr, flush=True)
    for empty in backgrounds(random, count // 4, 512):
        for kind, moment, spoiled in _spoil(random, empty, args):
            bench.empty[kind, moment].append(len(bench.finder.detect(_resize(spoiled, args.side))))
    print(bench.table())


def _spoil(random: scenes.Random, picture: Floats, args: argparse.Namespace) -> list[tuple[str, int, Picture]]:
    made = [("none", 100, scenes.to_picture(picture))]
    for kind, (noise, levels) in KINDS.items():
        for moment, level in zip(MOMENTS, levels, strict=True):
            factor = HARSHER if args.harsher and kind not in ("wiener", "latent") else 1.0
            made.append((kind, moment, scenes.to_picture(noise(random, picture, level * factor))))
    return made


def _resize(picture: Picture, side: int) -> Picture:
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _scale(placed: scenes.PlacedFace, scale: float) -> scenes.PlacedFace:
    factor = np.float32(scale)
    return scenes.PlacedFace(placed.box * factor, placed.points * factor, placed.face)


if __name__ == "__main__":
    main()
