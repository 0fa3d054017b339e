"""Writes scenes with one person as WebDataset shards, which `dp-adapter train` reads."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import webdataset

from dp_adapter.training.data.sample import Sample
from tools.small_base import mixed_faces, portraits, scenes
from tools.small_base.portraits import Portrait


def samples(people: Sequence[Portrait], count: int, seed: int) -> Iterator[Sample]:
    """Scenes of one person each."""
    random = np.random.default_rng(seed)
    made = 0
    while made < count:
        plan = scenes.draw_plan(random, people)
        if len(plan.people) != 1:
            continue
        scene = scenes.compose(random, plan, people)
        portrait = people[plan.people[0].portrait]
        rows, columns = np.nonzero(portraits.face_mask(scene.labels))
        if not len(rows):
            continue
        box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
        yield Sample(
            key=f"{made:06d}",
            person=portrait.person,
            caption=scenes.write_caption(random, plan),
            picture=scene.picture,
            labels=scene.labels,
            box=box,
            points=scene.points[0],
            embeddings={"sface": portrait.vector},
            facts={"size": plan.size},
        )
        made += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--mixes", type=int, default=1000, help="faces mixed from two people, beside the people")
    parser.add_argument("--seed", type=int, default=77)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    people = portraits.split(portraits.load(args.portraits))[0]
    people += mixed_faces.mix_people(np.random.default_rng(args.seed), people, args.mixes)
    with cast(Any, webdataset).TarWriter(str(args.out / "scenes-000000.tar")) as writer:
        for sample in samples(people, args.count, args.seed):
            writer.write(sample.to_record(lossless=True))


if __name__ == "__main__":
    main()
