"""Old photographs of a face: tint, creases, specks and grain out, each only where it is found. With OpenCV alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.face import Face, Floats
from dp_adapter.identity.features import EYE, FACE, Oval, feature_masks, frame, oval_mask
from dp_adapter.identity.pictures import Picture

Marks: TypeAlias = "NDArray[np.bool_]"

_AROUND = 2.6  # side of what is worked on, in sizes of the face: more than any encoder's crop of it shows
# Colour that follows from lightness: a print in one ink, a toner or yellowed paper. Lab units; of 32 colour portraits
# the least had 7.5, their sepia versions at most 0.6.
_ONE_INK = 3.0
_GRAIN = 4.0  # grey levels of noise from which it is taken out; clean portraits have at most 2
_THIN = 0.07  # width of a crease, in sizes of the face; wider marks are shading
_LONG_BRIGHT = 0.22  # length of bright lines: emulsion that is gone
_LONG_DARK = 0.6  # of dark ones, since wrinkles, brows and the frames of glasses are dark, too
_SPECK = 0.05  # size of a bright speck; dark ones may be moles


@dataclass(frozen=True)
class Wear:
    """What is found on a photo.

    Attributes:
        toned: whether its colour says nothing that its lightness does not, as in black and white and sepia.
        tinted: whether such a photo is of another colour than grey.
        grain: noise in grey levels, as a standard deviation.
        marks: share of the face under creases, scratches and specks.
    """

    toned: bool
    tinted: bool
    grain: float
    marks: float

    @property
    def old(self) -> bool:
        return self.toned or self.grain >= _GRAIN or self.marks > 0

    def words(self) -> tuple[str, ...]:
        """What `retouched` takes out."""
        found = {"tint": self.tinted, "creases and specks": self.marks > 0, "grain": self.grain >= _GRAIN}
        return tuple(name for name, there in found.items() if there)


def wear(picture: Picture, face: Face) -> Wear:
    """Looks at the surroundings of one face."""
    part, there = _around(picture, face)
    toned, tinted = _tone(part)
    marks = _marks(part, there)
    inside = oval_mask(frame(there, part.shape[:2]), FACE) > 0
    return Wear(toned, tinted, _noise(_grey(part)), float(marks.sum()) / max(int(inside.sum()), 1))


def retouched(picture: Picture, face: Face) -> Picture:
    """The photo without what `wear` finds on it, of the same size; the very same where it finds nothing.

    Tint goes everywhere, the rest around the face. Creases across eyes, brows, nose and mouth stay: filling them in
    would invent what the person is known by.
    """
    import cv2

    found = wear(picture, face)
    if not found.words():
        return picture
    made = np.repeat(_grey(picture)[..., None], 3, axis=2) if found.tinted else picture.copy()
    x1, y1, x2, y2 = _square(picture, face)
    part, there = _around(made, face)
    if found.marks:
        wide = cv2.dilate(_marks(part, there).astype(np.uint8), np.ones((3, 3), np.uint8))
        part = np.asarray(cv2.inpaint(part, wide, max(2.0, 0.02 * face.size), cv2.INPAINT_TELEA), np.uint8)
    if found.grain >= _GRAIN:
        part = _smooth(part, found.grain)
    made[y1:y2, x1:x2] = part
    return made


def _square(picture: Picture, face: Face) -> tuple[int, int, int, int]:
    half = max(8, round(face.size * _AROUND / 2))
    x, y = (round(float(value)) for value in face.centre)
    height, width = picture.shape[:2]
    return max(0, x - half), max(0, y - half), min(width, x + half), min(height, y + half)


def _around(picture: Picture, face: Face) -> tuple[Picture, Face]:
    x1, y1, x2, y2 = _square(picture, face)
    moved = Face(
        face.box - np.array([x1, y1, x1, y1], np.float32), face.points - np.array([x1, y1], np.float32), face.score
    )
    return picture[y1:y2, x1:x2], moved


def _grey(picture: Picture) -> Picture:
    import cv2

    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def _tone(part: Picture) -> tuple[bool, bool]:
    """Whether colour follows from lightness, and whether there is any: by a cubic fit of Lab's a and b over L."""
    import cv2

    small = cv2.resize(part, (96, 96), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    lab = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2LAB), np.float64).reshape(-1, 3)
    lightness, colour = lab[:, 0] / 100, lab[:, 1:]
    powers = np.stack([lightness**n for n in range(4)], axis=1)
    left = colour - powers @ np.linalg.lstsq(powers, colour, rcond=None)[0]
    toned = float(np.sqrt((left**2).sum(axis=1).mean())) < _ONE_INK
    return toned, toned and float(np.abs(colour).max()) > 1.0


def _noise(grey: Picture) -> float:
    """Standard deviation of fine noise: Immerkaer's operator, with the median, which edges do not move."""
    import cv2

    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = np.abs(cv2.filter2D(grey.astype(np.float32), -1, kernel)[1:-1, 1:-1])
    return float(np.median(response)) / 0.6745 / 6 if response.size else 0.0


def _marks(part: Picture, face: Face) -> Marks:
    """Creases, scratches and specks [h, w] on the face's skin."""
    import cv2

    grey, size = _grey(part), face.size
    noise = _noise(grey)
    smooth = cv2.GaussianBlur(grey, (0, 0), max(0.6, 0.006 * size + 0.05 * noise))
    width = max(5, int(_THIN * size) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    least = 22.0 + 2.0 * noise
    at = frame(face, part.shape[:2])
    bright = np.asarray(cv2.morphologyEx(smooth, cv2.MORPH_TOPHAT, kernel)) > least
    dark = np.asarray(cv2.morphologyEx(smooth, cv2.MORPH_BLACKHAT, kernel)) > least
    found = _lines(bright, size, _LONG_BRIGHT) | _specks(bright, size) | _lines(dark, size, _LONG_DARK)
    features = feature_masks(at)
    wide_eyes = Oval(0, 0, 1.5 * EYE.across, 2 * EYE.down)
    kept = np.maximum.reduce([*features.values(), *(oval_mask(at, wide_eyes, _point(at.points[n])) for n in (0, 1))])
    return np.asarray(found & (oval_mask(at, FACE) > 0.5) & (kept < 0.5))


def _point(point: Floats) -> tuple[float, float]:
    return float(point[0]), float(point[1])


def _lines(mask: Marks, size: float, least: float) -> Marks:
    """Components that are long and thin."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    kept = np.zeros(count, bool)
    for number in range(1, count):
        wide, high, area = (int(stats[number, at]) for at in (2, 3, 4))
        length = float(np.hypot(wide, high))
        kept[number] = length >= least * size and area / length <= 0.6 * _THIN * size
    return np.asarray(kept[labels])


def _specks(mask: Marks, size: float) -> Marks:
    """Components that are small and round."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    kept = np.zeros(count, bool)
    kept[1:] = stats[1:, 2:4].max(axis=1, initial=0) <= max(2.0, _SPECK * size)
    return np.asarray(kept[labels])


def _smooth(part: Picture, noise: float) -> Picture:
    """Non-local means, as strong as the noise."""
    import cv2

    strength = float(np.clip(0.8 * noise, 3.0, 20.0))
    if (part[..., :1] == part).all():
        return np.repeat(np.asarray(cv2.fastNlMeansDenoising(part[..., 0], None, strength))[..., None], 3, axis=2)
    return np.asarray(cv2.fastNlMeansDenoisingColored(part, None, strength, strength), np.uint8)
