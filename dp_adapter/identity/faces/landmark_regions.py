"""Regions of a face that follow from its five points: soft ellipses in the face's own axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dp_adapter.identity.faces.face import TEMPLATE, Face, Floats, similarity

SOFT = 0.25  # width of an edge, in radii


@dataclass(frozen=True)
class Oval:
    """An ellipse in units of the aligned 112 px template: centre x, y and radii along the face's axes."""

    x: float
    y: float
    across: float
    down: float


# Measured by eye on aligned crops; the brows lie about 0.45 eye distances (16 units) above the eyes.
FACE = Oval(56, 68, 44, 60)
NECK = Oval(56, 145, 48, 42)
EYE = Oval(0, 0, 12, 7.5)
BROW = Oval(0, -13, 14, 6.5)
NOSE = Oval(0, -8, 11, 19)
MOUTH = Oval(0, 0, 10, 10)
# Fitted to the ears of 91 portraits as a BiSeNet parsed them: where the ears are, and how both move with the nose.
EAR = Oval(45, 66, 8, 18)  # x from the middle of the face
CHEEK = Oval(56, 66, 40, 70)  # ears lie outside
TURN = 90  # units to the other side for each eye distance that the nose lies off the middle
EYE_DISTANCE = 35
GLASSES = Oval(56, 56, 46, 18)  # frames lie inside; earrings and hats do not
FRAME = 60  # square units, the least area of frames


@dataclass(frozen=True, eq=False)
class FaceFrame:
    """Coordinates of every pixel in template units.

    Args:
        units: [H, W, 2] x, y.
        points: the five points in the same units, [5, 2].
    """

    units: Floats
    points: Floats


def frame(face: Face, shape: tuple[int, int]) -> FaceFrame:
    """The template coordinates of a picture of `shape` (height, width)."""
    warp = similarity(face.points, TEMPLATE)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    turn = np.transpose(warp[:, :2]).astype(np.float32)
    move = warp[:, 2].astype(np.float32)
    return FaceFrame(np.stack([x, y], -1) @ turn + move, face.points @ turn + move)


def oval_mask(at: FaceFrame, oval: Oval, origin: tuple[float, float] = (0.0, 0.0)) -> Floats:
    """[H, W]: 1 inside, falling to 0 over a quarter radius around the edge."""
    x = (at.units[..., 0] - oval.x - origin[0]) / oval.across
    y = (at.units[..., 1] - oval.y - origin[1]) / oval.down
    return ((1 + SOFT / 2 - np.sqrt(x * x + y * y)) / SOFT).clip(0, 1)


def ear_mask(at: FaceFrame) -> Floats:
    """[H, W]: where ears would be, their skin and whatever hides it."""
    shift = TURN * (float(at.points[2, 0]) - FACE.x) / EYE_DISTANCE
    sides = [oval_mask(at, EAR, (FACE.x - 2 * EAR.x - shift, 0)), oval_mask(at, EAR, (FACE.x - shift, 0))]
    return np.maximum(*sides) * (1 - oval_mask(at, CHEEK, (-shift / 2, 0)))


def glasses_mask(at: FaceFrame, others: Floats) -> Floats:
    """[H, W]: what the frames of glasses enclose, from the share [H, W] of things that are neither skin nor hair.

    Each half of the face gets the convex hull of its frame; nothing where too little of one is seen.
    """
    import cv2

    frames = (others * oval_mask(at, GLASSES) > 0.4).astype(np.uint8)
    mask = np.zeros(frames.shape, np.float32)
    unit = float(np.linalg.norm(at.units[0, 1] - at.units[0, 0]))  # template units in a px
    for half in (at.units[..., 0] < FACE.x, at.units[..., 0] >= FACE.x):
        places = np.argwhere(half & (frames > 0))[:, ::-1]
        if len(places) * unit**2 >= FRAME / 2:
            cv2.fillConvexPoly(mask, cv2.convexHull(np.ascontiguousarray(places, np.int32)), 1.0)
    return mask


def feature_masks(at: FaceFrame) -> dict[str, Floats]:
    """eyes, brows, nose, mouth, each [H, W], placed at the found points, so that a turned face fits."""
    left_eye, right_eye, nose, left_mouth, right_mouth = ((float(x), float(y)) for x, y in at.points)
    mouth = (left_mouth[0] + right_mouth[0]) / 2, (left_mouth[1] + right_mouth[1]) / 2
    half_mouth = max(8.0, abs(right_mouth[0] - left_mouth[0]) / 2)
    return {
        "eyes": np.maximum(oval_mask(at, EYE, left_eye), oval_mask(at, EYE, right_eye)),
        "brows": np.maximum(oval_mask(at, BROW, left_eye), oval_mask(at, BROW, right_eye)),
        "nose": oval_mask(at, NOSE, nose),
        "mouth": oval_mask(at, Oval(0, 0, half_mouth + 5, MOUTH.down), mouth),
    }
