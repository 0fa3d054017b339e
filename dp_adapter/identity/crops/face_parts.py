"""A photo with all but one part of the face black, as ConsistentID looks at it (arXiv 2404.16771).

Source: JackAILab/ConsistentID@e234008 ``pipline_StableDiffusion_ConsistentID.py`` get_prepare_facemask and
``functions.py`` masks_for_unique_values: filled outlines, and only the first of the two eyes and ears. It takes the
upper lip where the whole mouth is taken here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.pictures.picture_files import Picture

PARTS = ("face", "eyes", "ears", "nose", "mouth")  # in the order that the published model was trained with
_PAIRS = frozenset({"eyes", "ears"})


def part_pictures(picture: Picture, face: Face, masks: Mapping[str, Floats]) -> tuple[Picture | None, ...]:
    """Per part the picture [H, W, 3], black elsewhere; None for a part that it does not show.

    Args:
        masks: of a parser, [H, W] in 0..1 by part.
    """
    left = _left_half(face, picture.shape[:2])
    found: list[Picture | None] = []
    for part in PARTS:
        mask = masks[part] > 0.5
        if part in _PAIRS and (mask & left).any():
            mask &= left
        found.append(np.where(_fill_holes(mask)[..., None], picture, np.uint8(0)) if mask.any() else None)
    return tuple(found)


def _left_half(face: Face, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """[H, W]: where the face's left half is, as seen in the picture."""
    eyes = face.points[:2]
    middle, across = eyes.mean(0), eyes[1] - eyes[0]
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.asarray((x - middle[0]) * across[0] + (y - middle[1]) * across[1] < 0)


def _fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without holes."""
    import cv2

    contours: Any = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    canvas = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(canvas, contours, -1, 1, cv2.FILLED)
    return canvas > 0
