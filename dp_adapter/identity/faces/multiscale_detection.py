"""Looking for faces of any size with a detector of one input size.

A detector trained on whole heads misses a face that overfills the frame (sd-webui-controlnet #2627) and
one of a few px. So the picture is put on the detector's square canvas at falling sizes, with black around
it, and, when that finds nothing, cut into overlapping tiles that are enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.pictures.picture_files import Picture

CANVAS = 640
RUNGS = (640, 448, 320, 192)
OVERLAP = 1.25
SMALLEST_TILE = 320
SAME_FACE = 0.3

FindFaces = Callable[[Picture], list[Face]]


def detect_at_scales(picture: Picture, find: FindFaces, tiles: bool) -> list[Face]:
    """All faces of a picture [H, W, 3], best score first, boxes clipped to it.

    Args:
        find: detects on a canvas [640, 640, 3], in px of the canvas.
        tiles: whether to search enlarged tiles as well when the whole picture shows no face. Takes up to 21
            runs of `find` for 1024 px pictures, 85 for 4096 px.
    """
    for rung in RUNGS:
        faces = _detect_at(picture, find, rung)
        if faces:
            return drop_duplicates(faces)
    if not tiles:
        return []
    height, width = picture.shape[:2]
    parts = 2
    while max(height, width) > CANVAS and max(height, width) * OVERLAP / parts >= SMALLEST_TILE:
        side = int(np.ceil(max(height, width) * OVERLAP / parts))
        faces: list[Face] = []
        for x, y in _corners(width, height, side):
            found = _detect_at(picture[y : y + side, x : x + side], find, CANVAS)
            faces += [_move(face, 1.0, (x, y)) for face in found]
        if faces:
            return drop_duplicates(faces)
        parts *= 2
    return []


def drop_duplicates(faces: list[Face]) -> list[Face]:
    """Greedy non-maximum suppression at IoU 0.3, best score first."""
    left = sorted(faces, key=lambda face: -face.score)
    boxes = np.array([face.box for face in left], np.float32).reshape(-1, 4)
    numbers = np.arange(len(left))
    kept: list[Face] = []
    while len(numbers):
        kept.append(left[int(numbers[0])])
        numbers = numbers[1:][_ious(boxes[numbers[0]], boxes[numbers[1:]]) <= SAME_FACE]
    return kept


def iou(a: Floats, b: Floats) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    return float(_ious(a, b[None])[0])


def _ious(box: Floats, others: Floats) -> NDArray[np.float64]:
    """Of a box [4] with others [n, 4]."""
    shared = _areas(np.concatenate([np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])], 1))
    union = _areas(box[None]) + _areas(others) - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def _areas(boxes: Floats) -> NDArray[np.float64]:
    return (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).clip(0).prod(1)


def clip_face(face: Face, width: int, height: int) -> Face | None:
    """The face with its box inside the picture; None when most of it lies outside, on the canvas' black border.

    The points stay where they are: alignment may use points beyond the edge.
    """
    edge = np.array([width, height, width, height], np.float32)
    box: Floats = face.box.clip(0, edge)
    return replace(face, box=box) if _areas(box[None])[0] > 0.4 * _areas(face.box[None])[0] else None


def _detect_at(picture: Picture, find: FindFaces, rung: int) -> list[Face]:
    """Faces of the picture drawn with its long side `rung` px in the middle of the canvas, in px of the picture."""
    import cv2

    height, width = picture.shape[:2]
    scale = rung / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2
    canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + size[1], left : left + size[0]] = cv2.resize(picture, size, interpolation=smooth)
    found = [_move(face, 1 / scale, (-left / scale, -top / scale)) for face in find(canvas)]
    return [kept for face in found if (kept := clip_face(face, width, height)) is not None]


def _move(face: Face, scale: float, shift: tuple[float, float]) -> Face:
    offset = np.array(shift, np.float32)
    return replace(
        face, box=face.box * np.float32(scale) + np.tile(offset, 2), points=face.points * np.float32(scale) + offset
    )


def _corners(width: int, height: int, side: int) -> Iterator[tuple[int, int]]:
    for y in _starts(height, side):
        for x in _starts(width, side):
            yield x, y


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = int(np.ceil((length - side) / (side / OVERLAP))) + 1
    return [round(start) for start in np.linspace(0, length - side, count)]
