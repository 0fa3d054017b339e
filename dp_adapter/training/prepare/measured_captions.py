"""Captions from measurements: what a picture shows, as fields, and a sentence made of them.

A field that is not sure is left out, so that every word of the sentence can be expected to be true.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_parsing import BACKGROUND, CLOTHES, FACE_SKIN, HAIR, OTHERS
from dp_adapter.identity.faces.face_quality import Quality
from dp_adapter.identity.pictures.picture_files import Picture

Labels = NDArray[np.uint8]
_GREY = 6.0  # chroma (Lab) below which a pixel is without colour to the eye
_LEAST = 0.03  # of the picture, for a part to be named
_FRAMINGS = ((0.62, "close-up"), (0.25, "head-and-shoulders"), (0.14, "half-length"))
"""Least height of the face as a share of the picture's."""
_HUES = ((20, "pink"), (45, "red"), (72, "orange"), (105, "yellow"), (170, "green"), (312, "blue"), (335, "purple"))
"""Upper ends of hue angles in Lab, degrees; above the last it is pink again."""


def measure_fields(picture: Picture, labels: Labels, face: Face, measured: Quality) -> dict[str, Any]:
    """Words by field: ``framing``, ``photo`` (black-and-white or colour), ``background``, ``clothes``, ``hair``,
    ``glasses``, ``facing``.

    Args:
        picture: [H, W, 3]; labels: [H, W]; face: in px of ``picture``; measured: the pose is used.
    """
    import cv2

    lab = np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab), np.float32)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    grey = float(np.percentile(chroma, 90)) < _GREY
    found: dict[str, Any] = {
        "framing": _name_framing(labels, face),
        "photo": "black-and-white" if grey else "colour",
        "glasses": _sees_glasses(labels, face),
        "facing": _name_direction(measured.yaw),
    }
    if not grey:
        found["background"] = _name_colour(lab, labels == BACKGROUND)
        found["clothes"] = _name_colour(lab, labels == CLOTHES)
        found["hair"] = _name_hair(lab, labels, face)
    return {name: value for name, value in found.items() if value is not None}


def write_sentence(fields: Mapping[str, Any]) -> str:
    """A caption from `measure_fields`'s words."""
    kind = "black-and-white photo" if fields.get("photo") == "black-and-white" else "photo"
    who = "bald person" if fields.get("hair") == "no" else "person"
    whole = f"a {fields['framing']} {kind} of a {who}"
    traits = [f"{fields['hair']} hair"] if fields.get("hair", "no") != "no" else []
    traits += ["glasses"] if fields.get("glasses") else []
    if traits:
        whole += f" with {' and '.join(traits)}"
    if "clothes" in fields:
        whole += f" in {fields['clothes']} clothes"
    if "facing" in fields:
        whole += f", {fields['facing']}"
    if "background" in fields:
        article = "an" if fields["background"][0] in "aeiou" else "a"
        whole += f", against {article} {fields['background']} background"
    return whole


def _name_framing(labels: Labels, face: Face) -> str:
    share = float(face.box[3] - face.box[1]) / labels.shape[0]
    return next((word for least, word in _FRAMINGS if share > least), "wide")


def _name_direction(yaw: float) -> str | None:
    """Left and right as in the picture; None between 10 and 20 degrees, where the pose's error decides."""
    if abs(yaw) < 10:
        return "facing the camera"
    return None if abs(yaw) < 20 else f"turned to the {'right' if yaw > 0 else 'left'}"


def _name_colour(lab: Floats, mask: NDArray[np.bool_]) -> str | None:
    """The colour's name of a part; None where the part is small or has several colours."""
    if mask.mean() < _LEAST:
        return None
    pixels = lab[mask]
    middle = np.median(pixels, axis=0)
    light, a, b = (float(value) for value in middle)
    spread = np.percentile(np.abs(pixels - middle), 75, axis=0)
    if float(np.hypot(spread[1], spread[2])) > 14 or float(spread[0]) > 22:
        return None
    return _name_lab(light, a, b)


def _name_lab(light: float, a: float, b: float) -> str | None:
    """The name of a colour in Lab; None between grey and a colour. Navy, black and dark brown are all ``dark``."""
    strength = float(np.hypot(a, b))
    if light < 18 or (light < 25 and strength < 14):
        return "dark"
    if strength < 6:
        return "white" if light > 85 else "grey"
    if strength < 14:
        return None
    hue = float(np.degrees(np.arctan2(b, a))) % 360
    name = next((name for end, name in _HUES if hue < end), "pink")
    if name == "pink" and light < 50:
        return "red"
    brown = name in {"orange", "yellow"} or (name == "red" and strength <= 40)
    return "brown" if brown and light < 45 else name


def _name_hair(lab: Floats, labels: Labels, face: Face) -> str | None:
    """The hair's colour, ``no`` for none, None where it is not sure.

    Limits in Lab are from the official portraits of ``tools/small_base``.
    """
    import cv2

    wide = max(3, int(face.size / 16) | 1)
    inner = cv2.erode((labels == HAIR).astype(np.uint8), np.ones((wide, wide), np.uint8)) > 0
    area = float((labels == HAIR).sum()) / max(int((labels == FACE_SKIN).sum()), 1)
    if area < 0.06:
        return "no"
    if area < 0.14 or inner.sum() < 0.004 * face.size**2:
        return None
    light, a, b = (float(value) for value in np.median(lab[inner], axis=0))
    chroma = float(np.hypot(a, b))
    if light < 22:
        return "dark"
    if light > 45 and chroma < 9:
        return "grey"
    if light > 50 and b > 17:
        return "blond"
    return "brown" if 24 < light < 40 and chroma > 13 else None


def _sees_glasses(labels: Labels, face: Face) -> bool | None:
    """By what the parser takes for something worn around the eyes."""
    eyes = face.points[:2]
    apart = float(np.linalg.norm(eyes[1] - eyes[0]))
    left, top, right, bottom = (round(float(v)) for v in (*(eyes.min(0) - 0.6 * apart), *(eyes.max(0) + 0.6 * apart)))
    around = labels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] == OTHERS
    share = float(around.sum()) / max(apart, 1.0) ** 2
    return True if share > 0.12 else False if share == 0 else None
