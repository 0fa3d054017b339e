"""Loads the portraits that scenes are made of, with what is measured of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dp_adapter.identity.faces.face_parsing import BACKGROUND, CLOTHES, FACE_SKIN, OTHERS
from dp_adapter.small_base.portrait_facts import (
    GLASSES,
    TEETH,
    Bytes,
    Floats,
    decide,
    glasses_share,
    measure_hair,
    teeth_share,
)

HELD_OUT = 10
"""Every tenth person (in order of names) is kept out of all training."""

SLOPE = 48
"""Columns, in pixels, by which shoulders that the portrait cuts off are continued on each side."""

GREY = 6.0
"""A photograph whose 90th percentile of CIELAB's chroma is below has no colour."""


@dataclass(frozen=True, eq=False)
class Portrait:
    """One photograph, widened by ``SLOPE`` on each side.

    Attributes:
        picture: [H, W, 3] RGB in 0..255; labels: [H, W] of the selfie network, background beyond the portrait.
        points: five landmarks [5, 2] in pixels of ``picture``; box: x, y, width, height of the face.
        sface: [128] of the whole portrait.
        grey: whether the photograph has no colour.
        hair: ``black``, ``brown``, ``blond``, ``grey`` or ``no``; None where it cannot be told.
        glasses, smiling: None where it cannot be told.
    """

    person: str
    number: int
    picture: Floats
    labels: Bytes
    points: Floats
    box: Floats
    sface: Floats
    grey: bool
    hair: str | None
    glasses: bool | None
    smiling: bool | None

    @property
    def vector(self) -> Floats:
        """``sface``, of length 1."""
        return np.asarray(self.sface / np.linalg.norm(self.sface), np.float32)


def load(path: Path) -> list[Portrait]:
    """Every portrait of ``portraits_192x240.npz``."""
    stored = np.load(path)
    pictures, labels = stored["jpeg_offsets"], stored["segmentation_offsets"]
    found: list[Portrait] = []
    for i, person in enumerate(stored["person"]):
        rgb = _decode(stored["jpeg"][pictures[i] : pictures[i + 1]], cv2.IMREAD_COLOR)[..., ::-1]
        segmented = _decode(stored["segmentation_png"][labels[i] : labels[i + 1]], cv2.IMREAD_GRAYSCALE)
        at: dict[str, Floats] = {name: stored[name][i].astype(np.float32) for name in ("landmarks", "face_box")}
        sface = stored["sface128"][i].astype(np.float32)
        found.append(measure(str(person), i, rgb, segmented, at["landmarks"], at["face_box"], sface))
    return found


def measure(
    person: str, number: int, rgb: Bytes, labels: Bytes, points: Floats, box: Floats, sface: Floats
) -> Portrait:
    """A portrait from what the networks found in it, all in pixels of ``rgb``."""
    picture = np.ascontiguousarray(rgb, np.float32)
    wide, wide_labels = widen(picture, labels)
    lab = np.asarray(cv2.cvtColor(picture / 255, cv2.COLOR_RGB2Lab), np.float32)
    return Portrait(
        person=person,
        number=number,
        picture=wide,
        labels=wide_labels,
        points=points + np.array([SLOPE, 0], np.float32),
        box=box + np.array([SLOPE, 0, 0, 0], np.float32),
        sface=sface,
        grey=float(np.percentile(np.hypot(lab[..., 1], lab[..., 2]), 90)) < GREY,
        hair=measure_hair(lab, labels).strict,
        glasses=decide(glasses_share(labels, points), GLASSES),
        smiling=decide(teeth_share(lab, points), TEETH),
    )


def split(portraits: Sequence[Portrait]) -> tuple[list[Portrait], list[Portrait]]:
    """Portraits of people to train on, and of people who are kept out."""
    people = sorted({portrait.person for portrait in portraits})
    kept_out = set(people[::HELD_OUT])
    return [p for p in portraits if p.person not in kept_out], [p for p in portraits if p.person in kept_out]


def face_mask(labels: Bytes) -> Floats:
    """[H, W]: 1 where a face is, glasses and beard with it, else 0."""
    return np.isin(labels, (FACE_SKIN, OTHERS)).astype(np.float32)


def widen(picture: Floats, labels: Bytes) -> tuple[Floats, Bytes]:
    """Continues clothes that the frame cuts off, in a falling line, to both sides."""
    sides = (0, 0, SLOPE, SLOPE)
    wide = np.asarray(cv2.copyMakeBorder(picture, *sides, cv2.BORDER_REPLICATE), np.float32)
    wide_labels = np.asarray(cv2.copyMakeBorder(labels, *sides, cv2.BORDER_CONSTANT, value=BACKGROUND), np.uint8)
    height = len(labels)
    for column, step in ((0, -1), (labels.shape[1] - 1, 1)):
        rows = np.flatnonzero(labels[:, column] == CLOTHES)
        if not len(rows):
            continue
        top = int(rows[0])
        for distance in range(1, SLOPE + 1):
            x = column + SLOPE + step * distance
            start = top + round(0.35 * distance + 0.012 * distance**2)
            if start >= height:
                break
            wide_labels[start:, x] = CLOTHES
            source = np.clip(np.arange(start, height) - (start - top), top, height - 1)
            wide[start:, x] = wide[source, column + SLOPE]
    return wide, wide_labels


def _decode(data: Any, mode: int) -> Bytes:
    picture = cv2.imdecode(data, mode)
    assert picture is not None
    return np.asarray(picture, np.uint8)
