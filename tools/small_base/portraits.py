"""The portraits that the scenes are made of, with what can be told about each by measuring it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BACKGROUND, HAIR, BODY, FACE, CLOTHES, OTHERS = range(6)
"""Labels of the selfie network."""

HELD_OUT = 10
"""Every tenth person (in order of names) is kept out of all training."""

_SLOPE = 48
"""Columns, in pixels, by which shoulders that the portrait cuts off are continued on each side."""


@dataclass(frozen=True, eq=False)
class Portrait:
    """One photograph, widened by ``_SLOPE`` on each side.

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


def load(path: Path) -> list[Portrait]:
    """Every portrait of ``portraits_192x240.npz``."""
    stored = np.load(path)
    pictures, labels = stored["jpeg_offsets"], stored["segmentation_offsets"]
    found: list[Portrait] = []
    for i, person in enumerate(stored["person"]):
        bgr = cv2.imdecode(stored["jpeg"][pictures[i] : pictures[i + 1]], cv2.IMREAD_COLOR)
        segmented = cv2.imdecode(stored["segmentation_png"][labels[i] : labels[i + 1]], cv2.IMREAD_GRAYSCALE)
        assert bgr is not None
        assert segmented is not None
        rgb = np.ascontiguousarray(bgr[..., ::-1])
        found.append(
            of(str(person), i, rgb, segmented, stored["landmarks"][i], stored["face_box"][i], stored["sface128"][i])
        )
    return found


def of(person: str, number: int, rgb: Bytes, labels: Bytes, points: Floats, box: Floats, sface: Floats) -> Portrait:
    """A portrait from what the networks found in it, all in pixels of ``rgb``."""
    wide, wide_labels = widened(rgb.astype(np.float32), labels.astype(np.uint8))
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    return Portrait(
        person=person,
        number=number,
        picture=wide,
        labels=wide_labels,
        points=points.astype(np.float32) + np.float32([_SLOPE, 0]),
        box=box.astype(np.float32) + np.float32([_SLOPE, 0, 0, 0]),
        sface=sface.astype(np.float32),
        grey=float(np.percentile(chroma, 90)) < 6,
        hair=_hair(lab, labels),
        glasses=_glasses(labels, points),
        smiling=_smiling(lab, points),
    )


def split(portraits: Sequence[Portrait]) -> tuple[list[Portrait], list[Portrait]]:
    """Portraits of people to train on, and of people who are kept out."""
    people = sorted({portrait.person for portrait in portraits})
    kept_out = set(people[::HELD_OUT])
    return [p for p in portraits if p.person not in kept_out], [p for p in portraits if p.person in kept_out]


def widened(picture: Floats, labels: Bytes) -> tuple[Floats, Bytes]:
    """Continues clothes that the frame cuts off, in a falling line, to both sides."""
    picture = cv2.copyMakeBorder(picture, 0, 0, _SLOPE, _SLOPE, cv2.BORDER_REPLICATE)
    wide = cv2.copyMakeBorder(labels, 0, 0, _SLOPE, _SLOPE, cv2.BORDER_CONSTANT, value=BACKGROUND)
    height = len(labels)
    for column, step in ((0, -1), (labels.shape[1] - 1, 1)):
        rows = np.flatnonzero(labels[:, column] == CLOTHES)
        if not len(rows):
            continue
        top = int(rows[0])
        for distance in range(1, _SLOPE + 1):
            x = column + _SLOPE + step * distance
            start = top + round(0.35 * distance + 0.012 * distance**2)
            if start >= height:
                break
            wide[start:, x] = CLOTHES
            source = np.clip(np.arange(start, height) - (start - top), top, height - 1)
            picture[start:, x] = picture[source, column + _SLOPE]
    return picture, wide


def _hair(lab: Floats, labels: Bytes) -> str | None:
    hair = lab[cv2.erode((labels == HAIR).astype(np.uint8), np.ones((5, 5))) > 0]
    area = (labels == HAIR).sum() / max(int((labels == FACE).sum()), 1)
    if area < 0.06:
        return "no"
    if area < 0.14 or len(hair) < 60:
        return None
    light, a, b = np.median(hair, axis=0)
    chroma = float(np.hypot(a, b))
    if light < 22:
        return "black"
    if light > 45 and chroma < 9:
        return "grey"
    if light > 50 and b > 17:
        return "blond"
    if 24 < light < 40 and chroma > 13:
        return "brown"
    return None


def _glasses(labels: Bytes, points: Floats) -> bool | None:
    """By the labels "others" around the eyes."""
    eyes = points[:2]
    apart = float(np.linalg.norm(eyes[1] - eyes[0]))
    (left, top), (right, bottom) = eyes.min(0) - 0.6 * apart, eyes.max(0) + 0.6 * apart
    around = labels[max(int(top), 0) : int(bottom), max(int(left), 0) : int(right)] == OTHERS
    share = around.sum() / apart**2
    return True if share > 0.12 else False if share == 0 else None


def _smiling(lab: Floats, points: Floats) -> bool | None:
    """By teeth: bright colourless pixels between the corners of the mouth and below."""
    corners = points[3:]
    wide = float(np.linalg.norm(corners[1] - corners[0]))
    centre = corners.mean(0)
    left, right = int(centre[0] - 0.35 * wide), int(centre[0] + 0.35 * wide)
    mouth = lab[int(centre[1] - 0.12 * wide) : int(centre[1] + 0.3 * wide), left:right].reshape(-1, 3)
    nose = points[2].astype(int)
    cheeks = lab[nose[1] - 3 : nose[1] + 4, nose[0] - 20 : nose[0] + 21].reshape(-1, 3)
    if not len(mouth) or not len(cheeks):
        return None
    skin = np.median(cheeks, axis=0)
    teeth = (mouth[:, 0] > skin[0] + 3) & (np.abs(mouth[:, 1]) < max(float(skin[1]) - 3, 3))
    share = float(teeth.mean())
    return True if share > 0.22 else False if share < 0.03 else None
