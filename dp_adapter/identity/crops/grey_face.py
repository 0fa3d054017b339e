"""PuLID's view of a face for EVA-CLIP: aligned, grey, and white where the face and the hair are not.

Source: ToTheBeginning/PuLID@1aa2fc7 ``pulid/pipeline_v1_1.py`` (get_id_embedding), with facexlib 0.3.0's
``FaceRestoreHelper``. There a RetinaFace finds the five points; here the detector does that found the face.
"""

from __future__ import annotations

import numpy as np

from dp_adapter.errors import FaceError
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_parsing import FaceParser
from dp_adapter.identity.faces.facexlib_parsing import INNER, SIDE, FacexlibParser
from dp_adapter.identity.pictures.picture_files import Picture

# facexlib 0.3.0 utils/face_restoration_helper.py, in full; facexlib_parsing.CROP is rounded
TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
BORDER = (132, 133, 135)  # RGB of what lies outside the photo
LONG = 1024  # PuLID shrinks photos to this long side first
KEPT = ("skin", *INNER, "hair")  # BiSeNet's classes; ears, neck, clothes, hat, jewellery and background are white
GREY = np.array([0.299, 0.587, 0.114], np.float32)
_INSIDE = 0.5


def grey_face(picture: Picture, face: Face, parser: FaceParser) -> Floats:
    """The face as EVA-CLIP is shown it, [512, 512, 3] in 0..1.

    Args:
        parser: facexlib's, as in the training; any other one serves, with other outlines.

    Raises:
        FaceError: the face's points fit no alignment.
        CatalogError: the parser's network is missing or damaged.
    """
    crop, moved = align_face(picture, face)
    grey = (crop.astype(np.float32) / 255) @ GREY
    seen = np.where(_kept_mask(crop, moved, parser), grey, np.float32(1))
    return np.repeat(seen[..., None], 3, -1)


def align_face(picture: Picture, face: Face) -> tuple[Picture, Face]:
    """facexlib's crop [512, 512, 3], and the face in it.

    Raises:
        FaceError: the points fit no alignment.
    """
    import cv2

    small, points = _shrink(picture, face.points)
    warp = np.asarray(cv2.estimateAffinePartial2D(points, TEMPLATE, method=cv2.LMEDS)[0], np.float64)
    if warp.shape != (2, 3):  # None, where the points coincide
        raise FaceError("The five points of a face fit no alignment", "Give another photo.")
    crop = cv2.warpAffine(small, warp, (SIDE, SIDE), borderMode=cv2.BORDER_CONSTANT, borderValue=BORDER)
    inside = np.asarray(points @ warp[:, :2].T + warp[:, 2], np.float32)
    scale = float(np.sqrt(abs(np.linalg.det(warp[:, :2])))) * len(small) / len(picture)
    middle = inside.mean(0)
    half = np.float32(face.size * scale / 2)
    return np.asarray(crop, np.uint8), Face(np.concatenate([middle - half, middle + half]), inside, face.score)


def _shrink(picture: Picture, points: Floats) -> tuple[Picture, Floats]:
    import cv2

    height, width = picture.shape[:2]
    if max(height, width) <= LONG:
        return picture, points
    factor = LONG / max(height, width)
    size = int(width * factor), int(height * factor)
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LANCZOS4), np.uint8)
    return small, np.asarray(points * (np.array(size) / (width, height)), np.float32)


def _kept_mask(crop: Picture, face: Face, parser: FaceParser) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Where the crop stays, [512, 512]."""
    if isinstance(parser, FacexlibParser):
        return parser.most_likely(crop, KEPT)
    parts = parser.parse(crop, face)
    return parts["face"] + parts["hair"] - parts["ears"] > _INSIDE
