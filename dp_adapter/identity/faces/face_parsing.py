"""The parts of a person as soft masks: MediaPipe's selfie network for the stuff, the five points for the features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.encoders.shipped_networks import CPU, SELFIE, open_network, shipped_path
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.landmark_regions import (
    FACE,
    NECK,
    ear_mask,
    feature_masks,
    frame,
    glasses_mask,
    oval_mask,
)
from dp_adapter.identity.pictures.picture_files import Picture

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PARTS = (
    "face", "skin", "hair", "clothes", "background", "neck", "ears", "glasses", "eyes", "brows", "nose", "mouth",
)  # fmt: skip
BACKGROUND, HAIR, BODY_SKIN, FACE_SKIN, CLOTHES, OTHERS = range(6)
"""Labels of the selfie network."""

INPUT = 256
CROP = 2.75  # side of the crop in sizes of the face: head and shoulders, as in the network's training pictures
SEAM = 0.25  # width of the blend from the crop to the rest, in sides of the crop; clothes need the wider view
UNSEEN = 0.25
CONTRAST = 3.0  # the network's logits stay within about 3, so a plain softmax is nowhere 0 and nowhere 1
FLOOR = 0.05


class FaceParser(Protocol):
    """Anything that parses a person into parts."""

    @property
    def name(self) -> str:
        """Short name, part of cache keys."""
        ...

    def parse(self, picture: Picture, face: Face) -> dict[str, Floats]:
        """Masks [H, W] in 0..1 of an RGB picture [H, W, 3] by name, see `PARTS`."""
        ...


class SelfieParser:
    """Soft masks of one person's parts.

    Selfie multiclass (Google, MediaPipe image segmenter, 256 px) is run on the whole picture and again on a square
    around the face, so that small faces get its resolution.

    Args:
        path: another file of the same network; the shipped one when None.
        providers: onnxruntime's, in order of preference.
        threads: onnxruntime's; 0 for all cores.
    """

    name = "selfie-multiclass"

    def __init__(self, path: Path | None = None, providers: Sequence[str] = CPU, threads: int = 0) -> None:
        self._path = path
        self._providers = tuple(providers)
        self._threads = threads

    def parse(self, picture: Picture, face: Face) -> dict[str, Floats]:
        """Masks [H, W] in 0..1 by name, see `PARTS`.

        ``face`` is this person's alone (skin, features, glasses; not the ears); skin, hair, clothes and background are
        everybody's. ``glasses`` are frames that the network sees, and what they enclose; rimless ones it does not see.
        A face that the network does not take for skin (a drawing, a blurred preview) gets the oval of its points.

        Raises:
            CatalogError: the network's file is missing or damaged.
            MissingDependencyError: onnxruntime is not installed.
            FaceError: the face's points coincide.
        """
        stuff = self._stuff(picture, face)
        at = frame(face, picture.shape[:2])
        oval = oval_mask(at, FACE)
        own = np.minimum(1, stuff[..., FACE_SKIN] + stuff[..., OTHERS]) * oval
        seen = float(own.sum() / max(float(oval.sum()), 1e-6))
        skin = np.minimum(1, stuff[..., FACE_SKIN] + stuff[..., BODY_SKIN])
        return {
            "face": _close_holes(own, face) if seen > UNSEEN else oval,
            "skin": skin,
            "hair": stuff[..., HAIR],
            "clothes": stuff[..., CLOTHES],
            "background": stuff[..., BACKGROUND],
            "neck": stuff[..., BODY_SKIN] * oval_mask(at, NECK),
            "ears": skin * ear_mask(at),
            "glasses": glasses_mask(at, stuff[..., OTHERS]),
            **feature_masks(at),
        }

    def labels(self, picture: Picture, face: Face) -> NDArray[np.uint8]:
        """The likeliest class of each pixel, [H, W], 0 ``BACKGROUND`` to 5 ``OTHERS``; of everybody in the picture.

        Raises:
            CatalogError, MissingDependencyError: as in `parse`.
        """
        return self._stuff(picture, face).argmax(-1).astype(np.uint8)

    @cached_property
    def _network(self) -> InferenceSession:
        return open_network(self._path or shipped_path(SELFIE), self._providers, self._threads)

    def _stuff(self, picture: Picture, face: Face) -> Floats:
        """Shares [H, W, 6] of the network's classes; the crop's blended into the whole picture's."""
        height, width = picture.shape[:2]
        side = max(8, round(face.size * CROP))
        left, top = (int(value) for value in np.round(face.centre - side / 2))
        x1, y1, x2, y2 = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
        near = self._segment(_pad_square(picture, left, top, side))[y1 - top : y2 - top, x1 - left : x2 - left]
        if (x1, y1, x2, y2) == (0, 0, width, height):
            return near
        square = max(height, width)
        down, right = (square - height) // 2, (square - width) // 2
        whole = self._segment(_pad_square(picture, -right, -down, square))[down : down + height, right : right + width]
        ramp = _ramp(x1, x2, width, side)[None, :] * _ramp(y1, y2, height, side)[:, None]
        share = ramp[..., None]
        whole[y1:y2, x1:x2] = share * near + (1 - share) * whole[y1:y2, x1:x2]
        return whole

    def logits(self, square: Picture) -> Floats:
        """What the network says of a square picture [S, S, 3], at its own size: [256, 256, 6]."""
        import cv2

        smooth = cv2.INTER_AREA if square.shape[0] > INPUT else cv2.INTER_LINEAR
        small = cv2.resize(square, (INPUT, INPUT), interpolation=smooth).astype(np.float32) / 255
        return cast("Floats", self._network.run(None, {"input_29": small[None]})[0])[0]

    def _segment(self, square: Picture) -> Floats:
        """Shares [S, S, 6] of the classes, exactly 0 and 1 where the network is sure, of a square picture [S, S, 3]."""
        import cv2

        side = square.shape[0]
        logits = np.asarray(cv2.resize(self.logits(square), (side, side), interpolation=cv2.INTER_LINEAR), np.float32)
        powers = np.exp(CONTRAST * (logits - logits.max(-1, keepdims=True)))
        shares = powers / powers.sum(-1, keepdims=True)
        return ((shares - FLOOR) / (1 - 2 * FLOOR)).clip(0, 1)


def _pad_square(picture: Picture, left: int, top: int, side: int) -> Picture:
    """The square at `left`, `top`, black outside the picture, which loses the least of the clothes."""
    import cv2

    height, width = picture.shape[:2]
    part = picture[max(0, top) : top + side, max(0, left) : left + side]
    missing = max(0, -top), max(0, top + side - height), max(0, -left), max(0, left + side - width)
    return np.asarray(cv2.copyMakeBorder(part, *missing, cv2.BORDER_CONSTANT), np.uint8)


def _ramp(start: int, stop: int, length: int, side: int) -> Floats:
    """Weight [stop - start] of the crop along one axis: 1, falling to 0 at its edges except where the picture ends."""
    at = np.arange(start, stop, dtype=np.float32) + 0.5
    seam = max(1.0, SEAM * side)
    low = (at - start) / seam if start > 0 else np.ones_like(at)
    high = (stop - at) / seam if stop < length else np.ones_like(at)
    return np.minimum(low, high).clip(0, 1)


def _close_holes(mask: Floats, face: Face) -> Floats:
    """The mask without small holes (nostrils, glints on glasses): greyscale closing over a twelfth of the face."""
    import cv2

    width = max(3, int(face.size / 12) | 1)
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((width, width), np.uint8)), np.float32)
