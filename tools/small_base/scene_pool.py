"""Writes composed scenes in files of a few hundred; autoencoder and base train on those that are there already."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dp_adapter.hosts.prompts.clip_tokenizer import clip_tokenizer
from dp_adapter.training.differentiable_faces import DifferentiableSFace, crop_warp
from dp_adapter.whole_files import write_whole
from tools.small_base import mixed_faces, portraits, scenes
from tools.small_base.portraits import Bytes, Floats, Portrait

CHUNK = 250
MIXES = 100
CAPTIONS = 4
GRID = 16
MOST = 2  # people in a scene

REAL = 6
"""Every sixth file shows people of the portraits, the others faces mixed from two of them."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """n scenes of up to two people; zeros where a scene has no second one.

    Attributes:
        pictures: [n, S, S, 3] RGB in 0..255; ids: [n, CAPTIONS, 77] tokens of as many captions.
        faces: [n, 2, 16, 16], the share of each latent cell that is a person's face, in 0..1.
        points: [n, 2, 5, 2] landmarks in px; warps: [n, 2, 2, 3], `crop_warp` for SFace's crop.
        vectors: [n, 2, 128], SFace's of the people, of length 1; references: of any photo of each person.
    """

    pictures: Tensor
    ids: Tensor
    faces: Tensor
    points: Tensor
    warps: Tensor
    vectors: Tensor
    references: Tensor


def face_masks(labels: Bytes, owner: Bytes) -> Floats:
    """[2, 16, 16]: the share of each latent cell that is a person's face."""
    masks = np.zeros((MOST, GRID, GRID), np.float32)
    for number in range(MOST):
        face = portraits.face_mask(labels) * (owner == number + 1)
        masks[number] = cv2.resize(face, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return masks


def make_scenes(random: np.random.Generator, people: Sequence[Portrait], tokenizer: Any, count: int = CHUNK) -> Scenes:
    """``count`` random scenes of these people."""
    plans = [scenes.draw_plan(random, people) for _ in range(count)]
    made = [scenes.compose(random, plan, people) for plan in plans]
    captions = [scenes.write_caption(random, plan) for plan in plans for _ in range(CAPTIONS)]
    ids = tokenize(tokenizer, captions).reshape(count, CAPTIONS, -1)
    photos: dict[str, list[int]] = {}
    for index, portrait in enumerate(people):
        photos.setdefault(portrait.person, []).append(index)
    own = [[person.portrait for person in plan.people] for plan in plans]
    other = [[int(random.choice(photos[people[i].person])) for i in row] for row in own]
    return Scenes(
        torch.from_numpy(np.stack([scene.picture for scene in made])),
        ids,
        torch.from_numpy(np.stack([face_masks(scene.labels, scene.owner) for scene in made])).half(),
        _pad([scene.points for scene in made], (5, 2)),
        _pad(
            [[crop_warp(five, scenes.SIDE, scenes.SIDE, DifferentiableSFace.size) for five in s.points] for s in made],
            (2, 3),
        ),
        *(_pad([[people[i].vector for i in row] for row in rows], (128,)) for rows in (own, other)),
    )


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """[n, 77], int32"""
    options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(captions), **options).input_ids.int()


def _pad(rows: Sequence[Sequence[NDArray[Any]]], shape: tuple[int, ...]) -> Tensor:
    """[n, 2, *shape]"""
    made = np.zeros((len(rows), MOST, *shape), np.float32)
    for i, row in enumerate(rows):
        made[i, : len(row)] = row
    return torch.from_numpy(made)


def write(path: Path, chunk: Scenes) -> None:
    with write_whole(path) as beside:
        save_file(vars(chunk), str(beside))


class Pool:
    """The files of a folder, which may become more; of ``ranks`` processes each takes its part."""

    def __init__(self, folder: Path, rank: int = 0, ranks: int = 1) -> None:
        self._folder, self._rank, self._ranks, self._read = folder, rank, ranks, set[str]()

    def __len__(self) -> int:
        return len(self._read)

    def new(self, most: int = 1 << 30) -> Iterator[Scenes]:
        """What was not given yet, read a file at a time: all pictures at once would fill the memory."""
        paths = [path for path in sorted(self._folder.glob("*.safetensors")) if path.name not in self._read]
        for path in [path for path in paths if int(path.stem) % self._ranks == self._rank][:most]:
            self._read.add(path.name)
            yield Scenes(**load_file(str(path)))

    def ids(self) -> Tensor:
        """Token ids of all captions that there are, without the pictures; [files x n, CAPTIONS, 77]."""
        made: list[Tensor] = []
        for path in sorted(self._folder.glob("*.safetensors")):
            with safe_open(str(path), "pt") as file:
                made.append(file.get_tensor("ids"))
        return torch.cat(made)


class SceneRows:
    """Rows that ``taken`` makes of a pool's files, joined by name on a device; they become more as the files do."""

    def __init__(self, pool: Pool, taken: Callable[[Scenes], dict[str, Tensor]], device: torch.device) -> None:
        self._pool, self._select, self._device = pool, taken, device
        self._rows: dict[str, Tensor] = {}

    def load_new(self, most: int = 1 << 30) -> int:
        """Takes files that are new; returns how many there are."""
        made = [self._select(chunk) for chunk in self._pool.new(most)]
        rows = [*([self._rows] if self._rows else []), *made]
        if made:
            self._rows = {name: torch.cat([one[name].to(self._device) for one in rows]) for name in made[0]}
        return len(self._pool)

    def draw(self, count: int) -> dict[str, Tensor]:
        """``count`` random rows of each."""
        which = torch.randint(0, len(next(iter(self._rows.values()))), (count,), device=self._device)
        return {name: rows[which] for name, rows in self._rows.items()}


def fill(portraits_file: Path, out: Path, numbers: Sequence[int]) -> None:
    """Makes the files of these numbers that are not there yet."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    known, tokenizer = portraits.split(portraits.load(portraits_file))[0], clip_tokenizer()
    for number in numbers:
        target = out / f"{number:05d}.safetensors"
        if not target.exists():
            random = np.random.default_rng((1000, number))
            people = mixed_faces.mix_people(random, known, MIXES) if number % REAL else known
            write(target, make_scenes(random, people, tokenizer))
            print(target.name, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    each = [range(first, args.chunks, args.workers) for first in range(args.workers)]
    workers = [context.Process(target=fill, args=(args.portraits, args.out, numbers)) for numbers in each]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
