"""A found face, the crop the encoders see, and the choice among several faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dp_adapter import naming
from dp_adapter.errors import FaceError
from dp_adapter.identity.pictures.picture_files import Picture

Floats = NDArray[np.float32]
Choice = Literal["largest", "centre", "left", "right", "index", "like"]

# insightface/utils/face_align.py, arcface_dst: left eye, right eye, nose, left and right mouth corner at 112 px.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)


@dataclass(frozen=True, eq=False)
class Face:
    """One face, in px of its picture.

    Args:
        box: x1, y1, x2, y2, shape [4].
        points: left eye, right eye, nose, left and right mouth corner, as seen in the picture, shape [5, 2].
        score: the detector's confidence in 0..1.
        embedding: [D], where the detector brings one.
    """

    box: Floats
    points: Floats
    score: float
    embedding: Floats | None = None

    def __post_init__(self) -> None:
        if self.box.shape != (4,) or self.points.shape != (5, 2):
            raise ValueError(f"box {self.box.shape} and points {self.points.shape} must be (4,) and (5, 2)")
        if not (np.isfinite(self.box).all() and np.isfinite(self.points).all()):
            raise ValueError("box and points must be finite")

    @property
    def size(self) -> float:
        """Side in px of the square of the box's area."""
        x1, y1, x2, y2 = self.box.tolist()
        return float(max(0.0, x2 - x1) * max(0.0, y2 - y1)) ** 0.5

    @property
    def centre(self) -> Floats:
        """Centre of the box in px, shape [2]."""
        return (self.box[:2] + self.box[2:]) * np.float32(0.5)


def similarity(source: Floats, target: Floats) -> NDArray[np.float64]:
    """Least-squares similarity transform [2, 3] from points [n, 2] to points [n, 2] (Umeyama, PAMI 1991, eqs. 38-43).

    Sums in float32 in the order of skimage's ``_umeyama``, which insightface calls: warpAffine rounds coordinates
    to 1/32 px, so that a difference in the last bit shows in the crop.

    Raises:
        FaceError: all source points coincide.
    """
    mean_s, mean_t = source.mean(axis=0), target.mean(axis=0)
    from_s, from_t = source - mean_s, target - mean_t
    variance = from_s.var(axis=0).sum()
    if variance < 1e-6:
        raise FaceError("The five points of a face coincide, so it cannot be aligned", "Give a larger picture.")
    covariance = np.transpose(from_t) @ from_s / len(source)
    mirror = np.array([[1.0, 0.0], [0.0, -1.0 if np.linalg.det(covariance) < 0 else 1.0]])
    u, d, vt = np.linalg.svd(covariance)
    rotation = (u @ mirror @ vt).astype(np.float64)
    scale = 1.0 / variance * (d @ np.diagonal(mirror))
    return np.hstack([scale * rotation, (mean_t - scale * (rotation @ mean_s))[:, None]])


def template(size: int) -> Floats:
    """ArcFace's five points [5, 2] for a crop of `size` px (insightface `estimate_norm`).

    Raises:
        ValueError: `size` is a multiple of neither 112 nor 128.
    """
    if size > 0 and size % 112 == 0:
        return TEMPLATE * np.float32(size / 112)
    if size > 0 and size % 128 == 0:
        return TEMPLATE * np.float32(size / 128) + np.array([8 * size / 128, 0], np.float32)
    raise ValueError(f"an aligned crop is a multiple of 112 or 128 px, not {size}")


def norm_crop(picture: Picture, points: Floats, size: int) -> Picture:
    """The face aligned to ArcFace's template, [size, size, 3]: insightface `face_align.norm_crop`, black outside."""
    import cv2

    warp = similarity(points, template(size))
    crop = cv2.warpAffine(picture, warp, (size, size), flags=cv2.INTER_LINEAR, borderValue=0.0)
    return np.asarray(crop, np.uint8)


def choose(
    faces: Sequence[Face],
    how: Choice = "largest",
    index: int = 0,
    like: Floats | None = None,
    picture_size: tuple[int, int] | None = None,
) -> Face:
    """One face of several.

    Args:
        how: largest box · nearest the picture's centre · leftmost · rightmost · `index` counted from the
            left, from 0 · the embedding closest to `like` (cosine).
        like: [D], for ``like``; every face then needs an embedding of the same encoder.
        picture_size: height, width in px, for ``centre``.

    Raises:
        FaceError: there is no face, or not the asked-for one.
    """
    if not faces:
        raise FaceError(
            "No face was found in the picture", "Give a picture in which the face is larger and unobstructed."
        )
    across = sorted(faces, key=lambda face: float(face.centre[0]))
    if how == "largest":
        return max(faces, key=lambda face: face.size)
    if how == "left":
        return across[0]
    if how == "right":
        return across[-1]
    if how == "index":
        return _by_index(across, index)
    if how == "like":
        return _most_alike(faces, like)
    if picture_size is None:
        raise ValueError("choosing the face at the centre needs picture_size")
    middle = np.array([picture_size[1], picture_size[0]], np.float32) / 2
    return min(faces, key=lambda face: float(np.linalg.norm(face.centre - middle)))


def _by_index(across: Sequence[Face], index: int) -> Face:
    if not 0 <= index < len(across):
        found = "1 face was" if len(across) == 1 else f"{len(across)} faces were"
        raise FaceError(
            f"{naming.capitalise(naming.face(index))} was asked for, but {found} found",
            f"Faces are counted from the left: choose face 1 to {len(across)} (index 0 to {len(across) - 1})."
            if len(across) > 1
            else "Choose face 1 (index 0).",
        )
    return across[index]


def _most_alike(faces: Sequence[Face], like: Floats | None) -> Face:
    if like is None:
        raise ValueError("choosing the most alike face needs an embedding to compare with")

    def cosine(face: Face) -> float:
        if face.embedding is None or face.embedding.shape != like.shape:
            raise FaceError(
                "Faces can only be compared by embeddings of one encoder",
                "Embed the faces before choosing by likeness.",
            )
        lengths = float(np.linalg.norm(face.embedding)) * float(np.linalg.norm(like))
        return float(np.einsum("d,d->", face.embedding, like)) / max(lengths, 1e-12)

    return max(faces, key=cosine)
