"""The whole person cut out of a photo, as StoryMaker's figures are: white around them, squeezed into a square.

Source: RedAIGC/StoryMaker@a7ce766 ``pipeline_sdxl_storymaker.py``, ``crop_image`` (no licence file), whose mask is the
user's; here the parser's stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_parsing import FaceParser
from dp_adapter.identity.pictures.picture_files import Picture

SIDE = 224
_BLUR = (5, 5)  # px of the photo
Hard = NDArray[np.bool_]


def cut_out_person(picture: Picture, face: Face, faces: Sequence[Face], parser: FaceParser) -> Picture:
    """The person whose face it is, [224, 224, 3].

    Args:
        faces: all faces of the photo, so that people who touch can be told apart.

    Raises:
        CatalogError, MissingDependencyError: the parser's network is not here.
    """
    import cv2
    from PIL import Image

    mask = person_mask(picture, face, faces, parser)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    soft = cv2.GaussianBlur(mask[place].astype(np.float32), _BLUR, 0)[..., None]
    cut = (255 * (1 - soft) + soft * picture[place]).astype(np.uint8)
    return np.array(Image.fromarray(cut).resize((SIDE, SIDE)))


def person_mask(picture: Picture, face: Face, faces: Sequence[Face], parser: FaceParser) -> Hard:
    """Where the person is, [H, W]: what hangs together with their face and is nearer to it than to another face."""
    import cv2

    parts = parser.parse(picture, face)
    own = parts["face"] > 0.5
    if not own.any():  # so small a face that no pixel is sure
        own[_centre(face, own.shape)] = True
    people = (parts["background"] < 0.5) | own
    others = [other for other in faces if not np.array_equal(other.box, face.box)]
    if others:
        people &= own | nearer_mask(face, others, people.shape)
    _, labels = cv2.connectedComponents(people.astype(np.uint8))
    return np.asarray(labels == int(np.bincount(labels[own]).argmax()), np.bool_)


def nearer_mask(face: Face, others: Sequence[Face], shape: tuple[int, ...]) -> Hard:
    """Where, [H, W], a face is at least as near as any of the others, of which there is one or more."""
    return np.asarray(_distance(face, shape) <= np.min([_distance(other, shape) for other in others], axis=0), np.bool_)


def _distance(face: Face, shape: tuple[int, ...]) -> Floats:
    """How far each pixel is from a face, in its sizes, [H, W]; a body is below its face, so down counts for nothing."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    return np.hypot(x - face.centre[0], np.minimum(0, y - face.centre[1])) / max(face.size, 1.0)


def _centre(face: Face, shape: tuple[int, ...]) -> tuple[int, int]:
    """The pixel of a face's centre."""
    column, row = (int(np.clip(value, 0, side - 1)) for value, side in zip(face.centre, shape[1::-1], strict=True))
    return row, column
