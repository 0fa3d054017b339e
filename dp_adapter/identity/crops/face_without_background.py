"""The face without what is around it, as MasterWeaver takes it: aligned like FFHQ's faces, black but for head and hair.

Source: csyxwei/MasterWeaver@a77535c ``data_scripts/{face_alignment,face_parsing}.py`` (Apache-2.0); the alignment is
NVlabs/ffhq-dataset's, whose eyes and corners of the mouth are four of the five points here.
"""

from __future__ import annotations

import numpy as np

from dp_adapter.errors import FaceError
from dp_adapter.identity.faces.face import Face, Floats, similarity
from dp_adapter.identity.faces.face_parsing import FaceParser
from dp_adapter.identity.faces.landmark_regions import Oval, frame, oval_mask
from dp_adapter.identity.pictures.picture_files import Picture

SIDE = 512
KEPT = ("face", "ears", "glasses", "hair")  # of a parsed face; neck, clothes and background are black
HEAD = Oval(56, 68, 62, 92)  # its upper half reaches to the hair, where the parser's face ends in an oval


def crop_parsed_face(picture: Picture, face: Face, parser: FaceParser) -> Picture:
    """The face, [512, 512, 3].

    Raises:
        CatalogError, MissingDependencyError: the parser's network is not here.
        FaceError: the face's points coincide.
    """
    import cv2

    square = ffhq_square(face)
    side = float(np.linalg.norm(square[1] - square[0]))
    factor = min(1.0, SIDE / side)  # reduced by area first, since a warp skips pixels of a large face
    if factor < 0.5:
        height, width = picture.shape[:2]
        size = max(1, round(width * factor)), max(1, round(height * factor))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        scale = np.array(size, np.float32) / np.array([width, height], np.float32)
    else:
        scale = np.ones(2, np.float32)
    corners = np.array([[0, 0], [0, SIDE], [SIDE, SIDE], [SIDE, 0]], np.float32)
    warp = similarity(square * scale, corners)
    crop = cv2.warpAffine(picture, warp, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    crop = np.asarray(crop, np.uint8)
    moved = _move(face, scale, warp.astype(np.float32))
    parts = parser.parse(crop, moved)
    at = frame(moved, crop.shape[:2])
    brow = parts["skin"] * oval_mask(at, HEAD) * (at.units[..., 1] < HEAD.y)
    kept = np.max([brow, *(parts[name] for name in KEPT)], axis=0) > 0.5
    return np.asarray(crop * kept[..., None], np.uint8)


def ffhq_square(face: Face) -> Floats:
    """Corners [4, 2] of FFHQ's crop: top left, bottom left, bottom right, top right. Raises FaceError."""
    left_eye, right_eye, _, left_mouth, right_mouth = face.points
    eyes, across = (left_eye + right_eye) / 2, right_eye - left_eye
    down = (left_mouth + right_mouth) / 2 - eyes
    axis = across + np.array([down[1], -down[0]], np.float32)  # right of the face, by its eyes and by its length
    length = float(np.linalg.norm(axis))
    if length < 1e-3:
        raise FaceError("The five points of a face coincide, so it cannot be aligned", "Give a larger picture.")
    half = axis / length * max(2.0 * float(np.linalg.norm(across)), 1.8 * float(np.linalg.norm(down)))
    below = np.array([-half[1], half[0]], np.float32)
    centre = eyes + 0.1 * down
    corners = [centre - half - below, centre - half + below, centre + half + below, centre + half - below]
    return np.stack(corners).astype(np.float32)


def _move(face: Face, scale: Floats, warp: Floats) -> Face:
    """The face where the warp [2, 3] puts it."""
    points = (face.points * scale) @ warp[:, :2].T + warp[:, 2]
    x1, y1, x2, y2 = face.box.tolist()
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32)
    box = (corners * scale) @ warp[:, :2].T + warp[:, 2]
    return Face(np.concatenate([box.min(0), box.max(0)]).astype(np.float32), points.astype(np.float32), face.score)
