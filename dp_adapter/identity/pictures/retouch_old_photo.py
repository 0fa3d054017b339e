"""Old photographs of a face: tint, creases, specks and grain out, each only where it is found. With OpenCV alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.landmark_regions import FACE, feature_masks, frame, oval_mask
from dp_adapter.identity.pictures.picture_files import Picture

Marks: TypeAlias = "NDArray[np.bool_]"

_AROUND = 2.6  # side of what is worked on, in sizes of the face: more than any encoder's crop of it shows
# Colour that follows from lightness: a print in one ink, a toner or yellowed paper. Lab units; of 32 colour portraits
# the least had 7.5, their sepia versions at most 0.6.
_ONE_INK = 3.0
_GRAIN = 4.0  # grey levels of noise from which it is taken out; clean portraits have at most 2
_THIN = 0.045  # greatest width of a crease, in sizes of the face; wider marks are shading
_LENGTH = 0.3  # of the straight piece that is looked for, in sizes of the face
_COVERED = 0.85  # share of such a piece that stands out
_STANDS_OUT = 24.0  # grey levels above the surroundings, for lines
_SPECK_OUT = 70.0  # for specks, which highlights resemble
_SPECK = 0.04  # size of a speck, in sizes of the face
_DIRECTIONS = 24


@dataclass(frozen=True)
class PhotoDamage:
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
        return self.toned or self.marks > 0

    @property
    def grainy(self) -> bool:
        """Whether there is grain to take out: in colour, that costs face encoders more than it gains."""
        return self.toned and self.grain >= _GRAIN

    def repairs(self) -> tuple[str, ...]:
        """What `retouch` takes out."""
        found = {"tint": self.tinted, "creases and specks": self.marks > 0, "grain": self.grainy}
        return tuple(name for name, there in found.items() if there)


def find_damage(picture: Picture, face: Face) -> PhotoDamage:
    """Looks at the surroundings of one face."""
    part, there = _around(picture, face)
    toned, tinted = _tone(part)
    marks = _marks(part, there)
    inside = oval_mask(frame(there, part.shape[:2]), FACE) > 0
    return PhotoDamage(toned, tinted, _noise(_grey(part)), float(marks.sum()) / max(int(inside.sum()), 1))


def retouch(picture: Picture, face: Face) -> Picture:
    """The photo without what `find_damage` finds on it, of the same size; the very same where it finds nothing.

    Tint goes everywhere, the rest around the face.
    """
    import cv2

    found = find_damage(picture, face)
    if not found.repairs():
        return picture
    made = np.repeat(_grey(picture)[..., None], 3, axis=2) if found.tinted else picture.copy()
    x1, y1, x2, y2 = _square(picture, face)
    part, there = _around(made, face)
    if found.marks:
        wide = cv2.dilate(_marks(part, there).astype(np.uint8), np.ones((3, 3), np.uint8))
        part = np.asarray(cv2.inpaint(part, wide, max(2.0, 0.02 * face.size), cv2.INPAINT_TELEA), np.uint8)
    if found.grainy:
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
    """Bright creases, scratches and specks [h, w] on the face's skin: places where the print's emulsion is gone.

    Dark ones are left: wrinkles, moles and the frames of glasses look like them. Eyes and mouth are left out, since
    filling them in would invent what the person is known by.
    """
    import cv2

    grey, size = _grey(part), face.size
    noise = _noise(grey)
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), max(0.6, 0.006 * size))
    around = cv2.medianBlur(cv2.GaussianBlur(grey, (0, 0), 1.0), max(3, int(2 * _THIN * size) | 1))
    above = np.asarray(smooth, np.float32) - np.asarray(around, np.float32)
    at = frame(face, part.shape[:2])
    features = feature_masks(at)
    skin = (oval_mask(at, FACE) > 0.5) & (np.maximum(features["eyes"], features["mouth"]) < 0.5)
    return (_lines(above, _STANDS_OUT + 0.45 * noise, size) | _specks(above > _SPECK_OUT + 2 * noise, size)) & skin


def _lines(above: Floats, least: float, size: float) -> Marks:
    """What stands out along a straight piece in some direction, and beside its ends."""
    import cv2

    reach = max(2, round(_LENGTH * size / 2))
    out = (above > least).astype(np.float32)
    covered = np.zeros_like(out)
    for angle in np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS:
        across, down = round(reach * float(np.cos(angle))), round(reach * float(np.sin(angle)))
        piece = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
        cv2.line(piece, (reach - across, reach - down), (reach + across, reach + down), (1.0,))
        covered = np.maximum(covered, cv2.filter2D(out, -1, piece / piece.sum()))
    width = int(0.1 * size) | 1
    near = cv2.dilate((covered > _COVERED).astype(np.uint8), np.ones((width, width), np.uint8))
    return np.asarray((np.asarray(near) > 0) & (above > 0.6 * least))


def _specks(mask: Marks, size: float) -> Marks:
    """Components that are small in both directions."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    kept = np.zeros(count, bool)
    kept[1:] = np.asarray(stats)[1:, 2:4].max(axis=1, initial=0) <= max(2.0, _SPECK * size)
    return kept[np.asarray(labels, np.intp)]


def _smooth(part: Picture, noise: float) -> Picture:
    """A grey picture by non-local means, as strong as the noise."""
    import cv2

    strength = float(np.clip(0.8 * noise, 3.0, 20.0))  # best of 0.4 to 1.0 for the likeness to the clean photo
    smooth = np.asarray(cv2.fastNlMeansDenoising(_grey(part), None, strength), np.uint8)
    return np.repeat(smooth[..., None], 3, axis=2)
