"""Labels each pixel of a small picture: with the selfie network, at the size at which it sees the faces, else drawn.

The network is trained on photographs. In a 128 px picture enlarged to its input it often takes a soft face for
background, and finds it when the same picture fills half of the input. Where it sees no face at either size, head and
clothes are drawn around what the face detector found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_parsing import BACKGROUND, CLOTHES, FACE_SKIN, HAIR, INPUT, OTHERS, SelfieParser
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.small_base.portrait_facts import Bytes

SIZES = (1.0, 0.5)
"""Of the picture in the network's input."""

SEEN = 0.6
"""Share of a face's middle that must not be background."""


def label_pixels(parser: SelfieParser, picture: Picture, faces: Sequence[Face], *, drawing: bool = True) -> Bytes:
    """Labels [INPUT, INPUT] of a picture [INPUT, INPUT, 3] with these faces.

    Args:
        drawing: whether to draw them where the network sees no face; else its best answer stays.
    """
    answers: list[Bytes] = []
    for size in SIZES:
        answers.append(_segment(parser, picture, size))
        if least_covered(answers[-1], faces) >= SEEN:
            return answers[-1]
    return draw_labels(faces) if drawing else max(answers, key=lambda labels: least_covered(labels, faces))


def least_covered(labels: Bytes, faces: Sequence[Face]) -> float:
    """The least share of a face's middle that is not background; 1 without faces."""
    shares = [1.0]
    for face in faces:
        x1, y1, x2, y2 = face.box.tolist()
        middle = labels[_middle(y1, y2), _middle(x1, x2)]
        if middle.size:
            shares.append(float((middle != BACKGROUND).mean()))
    return min(shares)


def _middle(low: float, high: float) -> slice:
    """The pixels of a side without a fifth at either end, and without what is outside the picture."""
    ends = (0.8 * low + 0.2 * high, 0.2 * low + 0.8 * high + 1)
    return slice(*(round(min(max(end, 0), INPUT - 1)) for end in ends))


def draw_labels(faces: Sequence[Face]) -> Bytes:
    """Draws labels of face, hair and clothes as on a person who faces the camera; ``OTHERS`` where they may be."""
    labels = np.full((INPUT, INPUT), BACKGROUND, np.uint8)
    y, x = np.mgrid[0:INPUT, 0:INPUT].astype(np.float32)
    for face in faces:
        x1, y1, x2, y2 = face.box.tolist()
        width, height = x2 - x1, y2 - y1
        across, down = np.abs(x - (x1 + x2) / 2) / width, (y - y2) / height  # from the face's axis, below its chin
        up = (y - (y1 + y2) / 2) / height
        labels[(np.hypot(across / 0.95, (up + 0.12) / 0.95) < 1) | ((down > -0.1) & (across < 1.1 + 1.2 * down))] = (
            OTHERS
        )
        labels[(np.hypot(across / 0.62, up / 0.72) < 1) & (up < -0.42)] = HAIR
        labels[np.hypot(across / 0.5, up / 0.5) < 1] = FACE_SKIN
        neck = (across < 0.4) & (down < 0.45)
        labels[(down > 0.12) & (across < 0.8) & ~neck] = CLOTHES
    return labels


def _segment(parser: SelfieParser, picture: Picture, size: float) -> Bytes:
    import cv2

    side = round(INPUT * size)
    border = (INPUT - side) // 2
    small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) if border else picture
    framed = cv2.copyMakeBorder(small, border, border, border, border, cv2.BORDER_REPLICATE)
    found: NDArray[np.uint8] = parser.logits(np.asarray(framed, np.uint8)).argmax(-1).astype(np.uint8)
    inside = np.ascontiguousarray(found[border : border + side, border : border + side])
    return np.asarray(cv2.resize(inside, (INPUT, INPUT), interpolation=cv2.INTER_NEAREST), np.uint8)
