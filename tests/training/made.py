"""Small training data made by machine: coloured squares with a face-like disc, and random embeddings a person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from webdataset.writer import TarWriter

from dp_adapter.identity.faces.face_parsing import BACKGROUND, CLOTHES, FACE_SKIN, HAIR
from dp_adapter.training.data.sample import Sample


def sample(number: int, person: int, side: int = 64) -> Sample:
    random = np.random.default_rng((number, person))
    picture = random.integers(0, 255, (side, side, 3)).astype(np.uint8)
    labels = np.full((side, side), BACKGROUND, np.uint8)
    labels[side // 2 :] = CLOTHES
    labels[side // 8 : side // 4, side // 4 : 3 * side // 4] = HAIR
    labels[side // 4 : 5 * side // 8, 3 * side // 8 : 5 * side // 8] = FACE_SKIN
    points = np.array([[0.42, 0.35], [0.58, 0.35], [0.5, 0.43], [0.44, 0.52], [0.56, 0.52]]) * side
    identity = np.random.default_rng(person).normal(size=128).astype(np.float32)
    return Sample(
        key=f"{number:04d}",
        person=f"person{person}",
        caption=f"color photo of a person, picture {number}",
        picture=picture,
        labels=labels,
        box=(0.36 * side, 0.25 * side, 0.64 * side, 0.64 * side),
        points=points.astype(np.float32),
        embeddings={"sface": identity, "transface": random.normal(size=(144, 512)).astype(np.float32)},
    )


def shards(folder: Path, people: int = 3, photos: int = 4, side: int = 64) -> str:
    """Two shards; returns the pattern that finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [(i, i % people) for i in range(people * photos)]
    for half in range(2):
        with TarWriter(str(folder / f"{half:03d}.tar")) as tar:
            for number, person in numbers[half::2]:
                tar.write(sample(number, person, side).to_record(lossless=True))
    return str(folder / "*.tar")
