"""Mixes new faces from two portraits each, since a network learns a thousand people by heart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_encoders import SFace
from tools.small_base.portraits import Floats, Portrait, face_mask

SHARE = (0.35, 0.75)
"""Of the second face in the mixed one."""

LEAST = 200
"""Pixels that both faces must cover."""

MOVED = 0.025
"""Deviation of the ways by which eyes, nose, mouth and chin are moved, in widths of the face."""


def mix_people(random: np.random.Generator, people: Sequence[Portrait], count: int) -> list[Portrait]:
    """Portraits of people who do not exist, with the vectors that SFace gives them."""
    coloured, network = [p for p in people if not p.grey], SFace(threads=1)
    made: list[Portrait] = []
    while len(made) < count:
        one, other = (reshape_features(random, coloured[int(i)]) for i in random.integers(0, len(coloured), 2))
        picture = blend_faces(one, other, float(random.uniform(*SHARE)))
        if picture is None or one.person == other.person:
            continue
        x, y, width, height = one.box
        face = Face(np.array([x, y, x + width, y + height], np.float32), one.points, 1.0)
        vector = network.embed(picture.round().astype(np.uint8), face)
        made.append(
            replace(
                one,
                person=f"{one.person}+{other.person}",
                picture=picture,
                sface=vector,
                glasses=one.glasses if one.glasses == other.glasses else None,
                smiling=one.smiling if one.smiling == other.smiling else None,
            )
        )
    return made


def reshape_features(random: np.random.Generator, portrait: Portrait) -> Portrait:
    """The portrait with its features in slightly other places: eyes closer, a longer nose, a narrower mouth, …"""
    width, points = float(portrait.box[2]), portrait.points
    chin = points[3:].mean(0) + 0.45 * (points[3:].mean(0) - points[:2].mean(0))
    apart, high, nose, wide, low, jaw = random.normal(0, MOVED * width, 6)
    ways = np.array([(-apart, high), (apart, high), (0, nose), (-wide, low), (wide, low), (0, jaw)], np.float32)
    places = np.vstack([points, chin])  # [6, 2]

    def moved(at: Floats) -> Floats:
        near = np.exp(-((at[..., None, :] - places) ** 2).sum(-1) / (2 * (0.22 * width) ** 2))
        return np.asarray(near @ ways, np.float32)

    rows, columns = portrait.labels.shape
    cells = np.stack(np.meshgrid(np.arange(0, columns, 8), np.arange(0, rows, 8)), -1).astype(np.float32)
    field = cv2.resize(moved(cells), (columns, rows), interpolation=cv2.INTER_LINEAR)
    x, y = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32))
    at = (x + field[..., 0], y + field[..., 1])
    return replace(
        portrait,
        picture=cv2.remap(portrait.picture, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
        labels=cv2.remap(portrait.labels, *at, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE),
        points=points - moved(points),
    )


def blend_faces(one: Portrait, other: Portrait, share: float) -> Floats | None:
    """``one`` with ``share`` of the other's face laid over its own, in a tone between; None if they do not meet."""
    size = (one.picture.shape[1], one.picture.shape[0])
    known = np.hstack([other.points, np.ones((5, 1), np.float32)])
    move = np.linalg.lstsq(known, one.points, rcond=None)[0].T.astype(np.float32)  # [2, 3]
    moved = cv2.warpAffine(other.picture, move, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    own, others = face_mask(one.labels), cv2.warpAffine(face_mask(other.labels), move, size)
    both = cv2.erode((own * others > 0.5).astype(np.float32), np.ones((5, 5)))
    cover = cv2.GaussianBlur(both, (0, 0), 3)[..., None]
    inside = cover[..., 0] > 0.5
    if inside.sum() < LEAST:
        return None
    tones = [picture[inside].mean(0) for picture in (one.picture, moved)]
    tone = (1 - share) * tones[0] + share * tones[1]
    face = (1 - share) * (one.picture + tone - tones[0]) + share * (moved + tone - tones[1])
    toned = one.picture + cv2.GaussianBlur(own, (0, 0), 2)[..., None] * (tone - tones[0])
    return np.asarray((toned * (1 - cover) + face * cover).clip(0, 255), np.float32)
