"""Measures colours, places and patterns of a segmented picture, by which `caption_check` judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_parsing import BACKGROUND, CLOTHES, CROP, FACE_SKIN, INPUT
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.small_base.background_patterns import GRID, Floats, FoundPattern, find_pattern
from dp_adapter.small_base.caption_grammar import COLOURS
from dp_adapter.small_base.portrait_facts import Bytes

Mask: TypeAlias = NDArray[np.bool_]

SIDE = INPUT
"""Side in px that every picture is brought to, the input of the selfie network."""

_OFF_CENTRE = 0.117  # half the shift of the training scenes' places, in widths of the picture
_GREY = 9.0  # chroma below which the skin of a face has no colour; skin of a colour photo has 12 and more


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """A picture with the labels and faces that the networks find in it; everything in px of [SIDE, SIDE].

    Attributes:
        picture: [SIDE, SIDE, 3] RGB; lab: the same in CIELAB; labels: [SIDE, SIDE] of the selfie network.
        faces: from left to right.
    """

    picture: Picture
    lab: Floats
    labels: Bytes
    faces: tuple[Face, ...]


def resize(picture: Picture, side: int) -> Picture:
    """The picture at [side, side, 3]."""
    import cv2

    smooth = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (side, side), interpolation=smooth), np.uint8)


def to_lab(picture: Picture) -> Floats:
    """CIELAB [H, W, 3], L* in 0..100."""
    import cv2

    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab), np.float32)


def crop_head(picture: Picture, face: Face) -> tuple[Picture, Floats]:
    """A square around a head, [SIDE, SIDE, 3], edges repeated; and the five landmarks in it."""
    import cv2

    scale = SIDE / (CROP * max(face.size, 8.0))
    corner = face.centre - SIDE / scale / 2
    move = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]], np.float32)
    crop = cv2.warpAffine(picture, move, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8), ((face.points - corner) * scale).astype(np.float32)


def side_of(face: Face) -> str:
    """On the left, in the centre or on the right."""
    off = float(face.centre[0]) / SIDE - 0.5
    return "on the left" if off < -_OFF_CENTRE else "on the right" if off > _OFF_CENTRE else "in the centre"


def is_grey(labelled: LabelledPicture) -> bool:
    """Whether a picture has no colour: by the skin of the faces, else by the whole picture."""
    chroma = np.hypot(labelled.lab[..., 1], labelled.lab[..., 2])
    skin = labelled.labels == FACE_SKIN
    if labelled.faces and skin.sum() > 100:
        return float(np.median(chroma[skin])) < _GREY
    return float(np.percentile(chroma, 98)) < _GREY


def clothes_colour(labelled: LabelledPicture, where: str = "") -> str | None:
    """The palette's colour of the clothes below a face; None where there is no such person or no clothes are seen."""
    face = _find_face(labelled, where)
    if face is None:
        return None
    height = float(face.box[3] - face.box[1])
    mask = erode(labelled.labels == CLOTHES, 3)
    bottom = int(face.box[3])
    mask[: max(bottom, 0)] = False
    mask[int(bottom + 1.3 * height) :] = False
    others = [one for one in labelled.faces if one is not face]
    for other in others:  # each side of the middle between two people is its own
        middle = int((face.centre[0] + other.centre[0]) / 2)
        if other.centre[0] > face.centre[0]:
            mask[:, middle:] = False
        else:
            mask[:, :middle] = False
    if mask.sum() < 40:
        return None
    return nearest_colour(_median(labelled.lab[mask]))


def _find_face(labelled: LabelledPicture, where: str) -> Face | None:
    if not where:
        return max(labelled.faces, key=lambda face: face.size, default=None)
    return next((face for face in labelled.faces if side_of(face) == where), None)


def _background_mask(labelled: LabelledPicture) -> Mask:
    return erode(labelled.labels == BACKGROUND, 9)


def background_pattern(labelled: LabelledPicture) -> FoundPattern:
    """The background's pattern."""
    import cv2

    share = cv2.resize(_background_mask(labelled).astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    light = cv2.resize(labelled.lab[..., 0] / 100, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return find_pattern(np.asarray(light, np.float32), (np.asarray(share) > 0.5).astype(np.float32))


def background_colour(labelled: LabelledPicture, patterned: bool) -> str | None:
    """The palette's colour nearest to the background's; of a pattern, the colour whose two shades explain it best."""
    pixels = labelled.lab[_background_mask(labelled)]
    if len(pixels) < 0.02 * SIDE * SIDE:
        return None
    if not patterned:
        return nearest_colour(_median(pixels))
    light = pixels[:, 0]
    middle = float(np.percentile(light, 10) + np.percentile(light, 90)) / 2
    return nearest_pattern_colour(_median(pixels[light >= middle]), _median(pixels[light <= middle]))


def nearest_colour(colour: Floats) -> str:
    """The palette's name of a colour in CIELAB [3]."""
    return min(plain_colours(), key=lambda name: _distance(colour, plain_colours()[name]))


def nearest_pattern_colour(light: Floats, dark: Floats) -> str:
    """The palette's name of the colour whose pattern has a light and a dark shade nearest to these, [3] each."""
    shades = pattern_colours()
    return min(shades, key=lambda name: _distance(light, shades[name][0]) + _distance(dark, shades[name][1]))


def _distance(one: Floats, other: Floats) -> float:
    """In CIELAB with less of the lightness, which shading changes."""
    return float(np.linalg.norm((one - other) * np.array([0.6, 1, 1], np.float32)))


@cache
def plain_colours() -> Mapping[str, Floats]:
    """CIELAB [3] of the palette."""
    return {name: colour_to_lab(np.array(rgb, np.float32)) for name, rgb in COLOURS.items()}


@cache
def pattern_colours() -> Mapping[str, tuple[Floats, Floats]]:
    """Light and dark shade of each patterned background, as the training scenes make them."""
    found: dict[str, tuple[Floats, Floats]] = {}
    for name, rgb in COLOURS.items():
        colour = np.array(rgb, np.float32)
        other = colour * 0.45 if colour.mean() > 110 else colour + 0.5 * (255 - colour)
        shades = sorted((colour_to_lab(colour), colour_to_lab(other)), key=lambda one: -float(one[0]))
        found[name] = (shades[0], shades[1])
    return found


def colour_to_lab(rgb: Floats) -> Floats:
    """CIELAB [3] of one colour, RGB [3] in 0..255."""
    return to_lab(rgb.round().astype(np.uint8)[None, None])[0, 0]


def erode(mask: Mask, side: int) -> Mask:
    """A mask [H, W] without its rim."""
    import cv2

    return np.asarray(cv2.erode(mask.astype(np.uint8), np.ones((side, side), np.uint8))) > 0


def _median(pixels: Floats) -> Floats:
    """Median colour [3] of pixels [n, 3]."""
    return np.asarray(np.median(pixels, axis=0), np.float32)
