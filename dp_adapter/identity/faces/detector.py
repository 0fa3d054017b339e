"""Finding faces: the protocol of detectors, and the shipped one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from dp_adapter.identity.encoders.shipped_networks import CPU, YUNET, open_network, shipped_path
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.multiscale_detection import CANVAS, detect_at_scales, drop_duplicates
from dp_adapter.identity.pictures.picture_files import Picture

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

STRIDES = (8, 16, 32)


class Detector(Protocol):
    """Anything that finds faces."""

    @property
    def name(self) -> str:
        """Short name, part of cache keys."""
        ...

    def detect(self, picture: Picture) -> list[Face]:
        """Faces of an RGB picture [H, W, 3], best score first, in px of the picture; empty when there are none."""
        ...


class YuNet:
    """YuNet (Wu et al., MIR 2023), opencv_zoo face_detection_yunet_2023mar, through onnxruntime.

    Args:
        threshold: least score of a face, 0..1.
        tiles: search enlarged tiles when the whole picture shows no face; off is faster on pictures without faces.
        path: another YuNet file; the shipped one when None.
        providers: onnxruntime's, in order of preference.
        threads: onnxruntime's; 0 for all cores.
    """

    name = "yunet"

    def __init__(
        self,
        threshold: float = 0.6,
        tiles: bool = True,
        path: Path | None = None,
        providers: Sequence[str] = CPU,
        threads: int = 0,
    ) -> None:
        self._threshold = threshold
        self._tiles = tiles
        self._path = path
        self._providers = tuple(providers)
        self._threads = threads

    def detect(self, picture: Picture) -> list[Face]:
        """See `Detector.detect`.

        Raises:
            CatalogError: the network's file is missing or damaged.
            MissingDependencyError: onnxruntime is not installed.
        """
        return detect_at_scales(picture, self._find, self._tiles)

    @cached_property
    def _network(self) -> InferenceSession:
        return open_network(self._path or shipped_path(YUNET), self._providers, self._threads)

    def _find(self, canvas: Picture) -> list[Face]:
        blob = np.moveaxis(canvas[None, :, :, ::-1], -1, 1).astype(np.float32)  # [1, 3, 640, 640] BGR, 0..255
        names = [f"{kind}_{stride}" for stride in STRIDES for kind in ("cls", "obj", "bbox", "kps")]
        outputs = cast("list[Floats]", self._network.run(names, {"input": blob}))
        faces: list[Face] = []
        for i, stride in enumerate(STRIDES):
            faces += self._decode(stride, *(output[0] for output in outputs[4 * i : 4 * i + 4]))
        return drop_duplicates(faces)

    def _decode(self, stride: int, cls: Floats, obj: Floats, bbox: Floats, kps: Floats) -> list[Face]:
        """Faces of one stride from [n, 1], [n, 1], [n, 4], [n, 10].

        OpenCV 4.x modules/objdetect/src/face_detect.cpp, FaceDetectorYNImpl::postProcess.
        """
        scores = np.sqrt(cls.clip(0, 1) * obj.clip(0, 1))[:, 0]
        hits = np.flatnonzero(scores >= self._threshold)
        side = CANVAS // stride
        cells = np.stack([hits % side, hits // side], 1).astype(np.float32)  # [k, 2] column, row
        centre = (cells + bbox[hits, :2]) * stride
        half = np.exp(bbox[hits, 2:]) * np.float32(stride / 2)
        points = (np.reshape(kps[hits], (-1, 5, 2)) + cells[:, None]) * stride
        boxes = np.concatenate([centre - half, centre + half], 1)
        return [Face(boxes[k], points[k], float(scores[hit])) for k, hit in enumerate(hits)]
