"""Measures hair, glasses and smile of a portrait.

Each measure is read in two ways. The strict one leaves a gap in which nothing is stated (for captions of training
pictures); the judging one cuts in the middle of the gap, so that every statement is true or false.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.faces.face_parsing import FACE_SKIN, HAIR, OTHERS

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class HairMeasure:
    """Colour in CIELAB and area of the hair.

    Attributes:
        area: of the hair, in areas of the face's skin.
        light, b, chroma: median L*, b* and chroma; None where too little hair is seen.
    """

    area: float
    light: float | None = None
    b: float = 0.0
    chroma: float = 0.0

    @property
    def strict(self) -> str | None:
        """``black``, ``brown``, ``blond``, ``grey``, ``no``, or None where it cannot be told."""
        if self.area < 0.06:
            return "no"
        if self.area < 0.14 or self.light is None:
            return None
        if self.light < 22:
            return "black"
        if self.light > 45 and self.chroma < 9:
            return "grey"
        if self.light > 50 and self.b > 17:
            return "blond"
        return "brown" if 24 < self.light < 40 and self.chroma > 13 else None

    def can_be(self, stated: str) -> bool:
        """Whether hair can be called so."""
        if stated == "no":
            return self.area < 0.10
        if self.area < 0.08 or self.light is None:
            return False
        light, chroma, b = self.light, self.chroma, self.b
        return {
            "black": light < 25,
            "grey": light > 38 and chroma < 12,
            "blond": light > 44 and b > 13,
            "brown": 20 < light < 47 and chroma > 9,
        }[stated]


def measure_hair(lab: Floats, labels: Bytes) -> HairMeasure:
    """Measures the hair of a head: CIELAB [H, W, 3] with L* in 0..100, labels [H, W] of the selfie network."""
    import cv2

    mask = (labels == HAIR).astype(np.uint8)
    area = float(mask.sum()) / max(int((labels == FACE_SKIN).sum()), 1)
    hair = lab[np.asarray(cv2.erode(mask, np.ones((5, 5), np.uint8))) > 0]
    if len(hair) < 60:
        return HairMeasure(area)
    light, a, b = (float(value) for value in np.median(hair, axis=0))
    return HairMeasure(area, light, b, float(np.hypot(a, b)))


def glasses_share(labels: Bytes, points: Floats) -> float:
    """Area labelled "others" around the eyes, in squares of their distance; points: five landmarks [5, 2]."""
    eyes = points[:2]
    apart = max(float(np.linalg.norm(eyes[1] - eyes[0])), 1.0)
    (left, top), (right, bottom) = eyes.min(0) - 0.6 * apart, eyes.max(0) + 0.6 * apart
    around = labels[max(int(top), 0) : max(int(bottom), 0), max(int(left), 0) : max(int(right), 0)]
    return float((around == OTHERS).sum()) / apart**2


def teeth_share(lab: Floats, points: Floats) -> float | None:
    """Share of bright colourless pixels between the corners of the mouth and below; None where the face is cut off."""
    corners = points[3:]
    wide = float(np.linalg.norm(corners[1] - corners[0]))
    centre = corners.mean(0)
    left, right = int(centre[0] - 0.35 * wide), int(centre[0] + 0.35 * wide)
    mouth = lab[max(int(centre[1] - 0.12 * wide), 0) : int(centre[1] + 0.3 * wide), max(left, 0) : right].reshape(-1, 3)
    x, y = (int(value) for value in points[2])
    half_height, half_width = max(round(0.08 * wide), 2), max(round(0.45 * wide), 6)
    cheeks = lab[max(y - half_height, 0) : y + half_height + 1, max(x - half_width, 0) : x + half_width + 1]
    if not mouth.size or not cheeks.size:
        return None
    skin = np.median(cheeks.reshape(-1, 3), axis=0)
    lighter = 3 if skin[1] > _RED else 10  # without colour, lit skin is told from teeth by lightness alone
    teeth = (mouth[:, 0] > skin[0] + lighter) & (np.abs(mouth[:, 1]) < max(float(skin[1]) - 3, 3))
    return float(teeth.mean())


_RED = 3.0
"""a* that skin has at least where a photo has colour."""

GLASSES = (0.0, 0.04, 0.12)
"""Share of glasses: none at the first, judged by the second, said to have them above the third."""

TEETH = (0.03, 0.09, 0.22)
"""Share of teeth: serious below the first, judged by the second, smiling above the third."""


def decide(share: float | None, thresholds: tuple[float, float, float]) -> bool | None:
    """True above the third threshold, False up to the first, None in between, where it is not certain."""
    if share is None or thresholds[0] < share <= thresholds[2]:
        return None
    return share > thresholds[2]
