"""InstantID's keypoint picture: what IdentityNet sees of a face's place and pose.

Source: instantX-research/InstantID@2145b67 ``draw_kps``; limbs at 0.6 of their colour, points as full circles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.pictures.picture_files import Picture

_NOSE = 2
_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
_STICK, _RADIUS, _DIM = 4, 10, 0.6


def draw_keypoints(faces: Sequence[Floats], width: int, height: int) -> Picture:
    """RGB [height, width, 3] on black.

    Args:
        faces: per face its five points [5, 2] in px: left eye, right eye, nose, left and right mouth corner.
    """
    import cv2

    canvas = np.zeros((height, width, 3), np.uint8)
    for points in faces:
        for number in (0, 1, 3, 4):
            x, y = points[[number, _NOSE]].T
            length = math.hypot(x[0] - x[1], y[0] - y[1])
            angle = math.degrees(math.atan2(y[0] - y[1], x[0] - x[1]))
            centre, axes = (int(x.mean()), int(y.mean())), (int(length / 2), _STICK)
            limb = cv2.ellipse2Poly(centre, axes, int(angle), 0, 360, 1)
            cv2.fillConvexPoly(
                canvas, np.asarray(limb, np.int32), tuple(int(_DIM * channel) for channel in _COLOURS[number])
            )
    for points in faces:
        for (x, y), colour in zip(points.tolist(), _COLOURS, strict=True):
            cv2.circle(canvas, (int(x), int(y)), _RADIUS, colour, -1)
    return canvas
