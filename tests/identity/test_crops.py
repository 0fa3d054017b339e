"""The cut-out person of StoryMaker and the parsed face of MasterWeaver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dp_adapter.errors import FaceError
from dp_adapter.identity.crops.face_without_background import crop_parsed_face, ffhq_square
from dp_adapter.identity.crops.person_cut_out import cut_out_person, person_mask
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_parsing import SelfieParser
from dp_adapter.identity.pictures.picture_files import Picture


@pytest.fixture(scope="module")
def parser() -> SelfieParser:
    return SelfieParser()


def pair_of(portraits: list[Picture]) -> Picture:
    """Two people whose shoulders touch."""
    import cv2

    left, right = (cv2.resize(portrait, (200, 250)) for portrait in (portraits[7], portraits[1]))
    return np.hstack([left[:, :165], right[:, 25:]]).astype(np.uint8)


def test_a_person_on_white(astronaut: Picture, yunet: YuNet, parser: SelfieParser) -> None:
    (face,) = yunet.detect(astronaut)
    crop, mask = (function(astronaut, face, [face], parser) for function in (cut_out_person, person_mask))
    assert crop.shape == (224, 224, 3) and crop.dtype == np.uint8
    x, y = face.centre.astype(int).tolist()
    assert mask[y, x] and mask[400, 200] and not mask[60, 420], "face and suit, not the flag"
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = ~cut[np.linspace(0, len(cut) - 1, 224).astype(int)][:, np.linspace(0, cut.shape[1] - 1, 224).astype(int)]
    assert (crop[small] == 255).mean() > 0.9, "white around the person, who fills the square"
    for edge in (cut[0], cut[-1], cut[:, 0], cut[:, -1]):
        assert edge.any()


def test_people_who_touch_are_told_apart(portraits: list[Picture], yunet: YuNet, parser: SelfieParser) -> None:
    pair = pair_of(portraits)
    left, right = sorted(yunet.detect(pair), key=lambda face: float(face.centre[0]))
    masks = [person_mask(pair, face, [left, right], parser) for face in (left, right)]
    assert not (masks[0] & masks[1]).any()
    for mask, own, other in ((masks[0], left, right), (masks[1], right, left)):
        (x, y), (ox, oy) = own.centre.astype(int).tolist(), other.centre.astype(int).tolist()
        assert mask[y, x] and not mask[oy, ox]
    alone = person_mask(pair, left, [left], parser)
    assert masks[0].sum() < alone.sum(), "without the other's face, what hangs together is one person"


def test_a_face_that_no_pixel_is_sure_of(parser: SelfieParser) -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    points = np.array([[31, 31], [32, 31], [31.5, 31.5], [31, 32], [32, 32]], np.float32)
    for box in ([30, 30, 33, 33], [-9, -9, 2, 2]):
        face = Face(np.array(box, np.float32), points, 0.9)
        assert cut_out_person(flat, face, [face], parser).shape == (224, 224, 3)


def test_a_parsed_face_is_aligned_and_black_around(astronaut: Picture, yunet: YuNet, parser: SelfieParser) -> None:
    import cv2

    (face,) = yunet.detect(astronaut)
    crop = crop_parsed_face(astronaut, face, parser)
    assert crop.shape == (512, 512, 3) and crop.dtype == np.uint8
    assert not crop[:8, :8].any() and not crop[-8:].any(), "neither background nor suit"
    (found,) = yunet.detect(crop)
    assert abs(found.points[0, 1] - found.points[1, 1]) < 12, "upright"
    eyes = found.points[:2].mean(0)
    assert abs(eyes[0] - 256) < 25 and abs(eyes[1] - 243) < 25, "where FFHQ has them: a tenth of eyes to mouth above"
    turned = np.ascontiguousarray(np.rot90(astronaut))
    points = np.stack([face.points[:, 1], 511 - face.points[:, 0]], 1)
    x1, y1, x2, y2 = face.box.tolist()
    box = np.array([y1, 511 - x2, y2, 511 - x1], np.float32)
    again = crop_parsed_face(turned, replace(face, box=box, points=points), parser)
    assert np.abs(again.astype(int) - crop).mean() < 6, "whichever way the photo is turned"
    large = cv2.resize(astronaut, None, fx=6, fy=6, interpolation=cv2.INTER_LINEAR)
    grown = crop_parsed_face(
        np.asarray(large, np.uint8), replace(face, box=face.box * 6, points=face.points * 6), parser
    )
    assert np.abs(grown.astype(int) - crop).mean() < 6, "whatever its size"


def test_ffhqs_square() -> None:
    points = np.array([[-1, 0], [1, 0], [0, 1], [-0.8, 2], [0.8, 2]], np.float32)
    face = Face(np.array([-2, -2, 2, 3], np.float32), points, 0.9)
    # eyes 2 apart, mouth 2 below: half a side is max(2 * 2, 1.8 * 2) = 4, the centre 0.2 below the eyes
    np.testing.assert_allclose(ffhq_square(face), [[-4, -3.8], [-4, 4.2], [4, 4.2], [4, -3.8]], atol=1e-6)
    with pytest.raises(FaceError, match="coincide"):
        ffhq_square(replace(face, points=np.zeros((5, 2), np.float32)))
