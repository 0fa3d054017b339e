"""Composed scenes as latents, in files of a few hundred; made once, beside the training, which takes what is there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tools.small_base import mixing, portraits, scenes, vae
from tools.small_base.portraits import Bytes, Floats, Portrait
from tools.small_base.scenes import Person, Plan

CHUNK = 250
MIXES = 100
GRID = 16


@dataclass(frozen=True, eq=False)
class Chunk:
    """Scenes: latents [n, 4, 16, 16] of unit variance, face masks [n, 2, 16, 16] in 0..1 by person, and plans.

    With ``vectors`` [m, 128] the plans' portraits are faces that were mixed for this chunk.
    """

    latents: Tensor
    faces: Tensor
    plans: tuple[Plan, ...]
    vectors: Tensor | None = None


def face_masks(labels: Bytes, owner: Bytes) -> Floats:
    """[2, 16, 16]: the share of each latent cell that is a person's face."""
    masks = np.zeros((2, GRID, GRID), np.float32)
    for number in (1, 2):
        face = portraits.face_of(labels) * (owner == number)
        masks[number - 1] = cv2.resize(face, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return masks


@torch.no_grad()
def encoded(net: Any, pictures: Sequence[Bytes]) -> Tensor:
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return net.encode(batch).latent_dist.mean * vae.CONFIG["scaling_factor"]


def make(random: np.random.Generator, people: Sequence[Portrait], net: Any) -> Chunk:
    plans = [scenes.planned(random, people) for _ in range(CHUNK)]
    made = [scenes.composed(random, plan, people) for plan in plans]
    latents = torch.cat([encoded(net, [s.picture for s in made[i : i + 10]]) for i in range(0, CHUNK, 10)])
    faces = np.stack([face_masks(scene.labels, scene.owner) for scene in made])
    return Chunk(latents.half(), torch.from_numpy(faces).half(), tuple(plans))


def make_mixed(random: np.random.Generator, people: Sequence[Portrait], net: Any) -> Chunk:
    crowd = mixing.crowd(random, people, MIXES)
    return replace(make(random, crowd, net), vectors=torch.from_numpy(np.stack([p.sface for p in crowd])))


def write(path: Path, chunk: Chunk) -> None:
    """One safetensors file, the plans in its metadata."""
    plans = json.dumps([asdict(plan) for plan in chunk.plans])
    part = path.with_suffix(".part")
    tensors = {"latents": chunk.latents.contiguous(), "faces": chunk.faces}
    save_file(tensors | ({} if chunk.vectors is None else {"vectors": chunk.vectors}), str(part), {"plans": plans})
    part.replace(path)


def read(path: Path) -> Chunk:
    with safe_open(str(path), "pt") as file:
        plans = json.loads((file.metadata() or {})["plans"])
        vectors = file.get_tensor("vectors") if "vectors" in file.keys() else None  # noqa: SIM118 - no iterator
        return Chunk(
            file.get_tensor("latents"), file.get_tensor("faces"), tuple(_plan(plan) for plan in plans), vectors
        )


def _plan(stored: dict[str, Any]) -> Plan:
    people = tuple(Person(**person) for person in stored["people"])
    return Plan(stored["size"], stored["background"], stored["pattern"], stored["grey"], people)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--mixed", action="store_true", help="of faces mixed from two portraits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    people = portraits.split(portraits.load(args.portraits))[0]
    net = vae.new()
    net.load_state_dict(torch.load(args.vae, weights_only=True))
    net.eval()
    for number in range(args.chunks):
        target = args.out / f"{'mixed' if args.mixed else ''}{number:04d}.safetensors"
        if target.exists():
            continue
        made = make_mixed if args.mixed else make
        chunk = made(np.random.default_rng((1000 + number, int(args.mixed))), people, net)
        write(target, chunk)
        print(target.name, flush=True)


if __name__ == "__main__":
    main()
