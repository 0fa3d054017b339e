"""The network that sees faces in previews: blurred, noisy pictures in which detectors for photographs see nothing.

A U-Net of 0.7 million weights, trained on public-domain portraits in made-up scenes (tools/train_preview.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from dp_adapter.identity.encoders.shipped_networks import CPU, PREVIEW, open_network, shipped_path
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.multiscale_detection import drop_duplicates
from dp_adapter.identity.pictures.picture_files import Picture

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

STRIDE = 4  # px of the input in a cell of the heads
STEP = 32  # sides are multiples of it
TRAINED = 128  # px of the input in training, the unit of widths and heights


@dataclass(frozen=True, eq=False)
class PreviewFaces:
    """What the network sees in one picture [H, W].

    Attributes:
        faces: best first, in px of the picture; the score is the network's own.
        mask: share of everybody's faces, [H, W].
    """

    faces: list[Face]
    mask: Floats


class PreviewNetwork:
    """Faces, their points and their region in one pass.

    Args:
        path: another file of the same network; the shipped one when None.
        providers: onnxruntime's, in order of preference.
    """

    def __init__(self, path: Path | None = None, providers: Sequence[str] = CPU) -> None:
        self._path = path
        self._providers = tuple(providers)

    def look(self, picture: Picture, side: int, threshold: float) -> PreviewFaces:
        """Looks at a picture [H, W, 3] whose long side is brought to `side` px, a multiple of 32.

        Args:
            threshold: least score of a face, 0..1.

        Raises:
            CatalogError: the network's file is missing or damaged.
            MissingDependencyError: onnxruntime is not installed.
        """
        import cv2

        height, width = picture.shape[:2]
        scale = side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(picture, size, interpolation=smooth)
        missing = -size[1] % STEP, -size[0] % STEP
        canvas = cv2.copyMakeBorder(small, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)
        blob = np.moveaxis(np.asarray(canvas, np.float32) / 255, -1, 0)[None]  # [1, 3, h, w]
        heads, mask = cast("list[Floats]", self._network.run(["heads", "mask"], {"picture": blob}))
        large = np.asarray(cv2.resize(mask[0, 0], blob.shape[:1:-1], interpolation=cv2.INTER_LINEAR), np.float32)
        full = cv2.resize(large[: size[1], : size[0]], (width, height), interpolation=cv2.INTER_LINEAR)
        return PreviewFaces(_decode(heads[0], scale, threshold), np.asarray(full, np.float32))

    @cached_property
    def _network(self) -> InferenceSession:
        return open_network(self._path or shipped_path(PREVIEW), self._providers)


def _decode(heads: Floats, scale: float, threshold: float) -> list[Face]:
    """Faces of the heads [15, h, w]: share of a centre; its x, y in cells and log width, height; points in boxes."""
    import cv2

    shares = heads[0]
    highest = np.asarray(cv2.dilate(shares, np.ones((3, 3), np.uint8)), np.float32)
    rows, columns = np.nonzero((shares >= threshold) & (shares >= highest))
    faces: list[Face] = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        values = heads[1:, row, column]
        centre = (np.array([column, row], np.float32) + np.float32(0.5) + values[:2]) * np.float32(STRIDE)
        extent = np.exp(values[2:4].clip(-6, 0.5)) * np.float32(TRAINED)
        points = np.reshape(values[4:], (5, 2)) * extent + centre
        half = extent * np.float32(0.5)
        box = np.concatenate([centre - half, centre + half])
        share = float(shares[row, column])
        faces.append(Face(np.asarray(box / scale, np.float32), np.asarray(points / scale, np.float32), share))
    return drop_duplicates(faces)
