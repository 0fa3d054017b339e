"""PuLID's grey face: facexlib's alignment, white where BiSeNet sees no face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp_adapter.errors import FaceError
from dp_adapter.identity.crops.grey_face import BORDER, LONG, TEMPLATE, align_face, grey_face
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_parsing import SelfieParser
from dp_adapter.identity.faces.facexlib_parsing import LAYOUTS, FacexlibParser
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from tests.identity.faces.test_facexlib_parsing import facexlib, save

__all__ = ["facexlib"]  # a fixture

# ToTheBeginning/PuLID@1aa2fc7 pipeline_v1_1.py, bg_label: of BiSeNet's 19 classes
WHITE = {0, 16, 18, 7, 8, 9, 14, 15}
COLOURS = np.array([200, 100, 50], np.uint8)
GREY = (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255


def placed(points: Floats, size: float = 100) -> Face:
    middle = points.mean(0)
    return Face(np.concatenate([middle - size / 2, middle + size / 2]).astype(np.float32), points, 1.0)


@pytest.fixture(scope="module")
def photo(portrait: Path) -> tuple[Picture, Face]:
    picture = load_picture(portrait)
    return picture, YuNet().detect(picture)[0]


def test_points_on_the_template_are_not_moved() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.uint8)
    crop, face = align_face(picture, placed(TEMPLATE.astype(np.float32)))
    assert np.abs(crop.astype(int) - picture).mean() < 3 and np.allclose(face.points, TEMPLATE, atol=0.01)
    assert face.size == pytest.approx(100, abs=0.1)


def test_outside_the_photo_it_is_facexlibs_grey() -> None:
    picture = np.full((300, 300, 3), 255, np.uint8)
    crop, _ = align_face(picture, placed(TEMPLATE.astype(np.float32) - 150))
    assert tuple(crop[0, 0]) == BORDER == (132, 133, 135) and tuple(crop[400, 300]) == (255, 255, 255)


def test_a_large_photo_is_shrunk_first(photo: tuple[Picture, Face]) -> None:
    """A warp skips pixels of a large face, and PuLID's was trained on photos of 1024 px."""
    picture, face = photo
    large = np.asarray(Image.fromarray(picture).resize((3 * LONG, 3 * LONG), Image.Resampling.LANCZOS))
    factor = np.float32(3 * LONG / 512)
    crops = [align_face(picture, face), align_face(large, Face(face.box * factor, face.points * factor, 1.0))]
    assert np.allclose(crops[0][1].points, crops[1][1].points, atol=0.05)
    assert crops[0][1].size == pytest.approx(crops[1][1].size, rel=1e-3)
    assert np.abs(crops[0][0].astype(int) - crops[1][0]).mean() < 5


def test_coinciding_points_are_refused() -> None:
    with pytest.raises(FaceError, match="fit no alignment"):
        align_face(np.zeros((64, 64, 3), np.uint8), placed(np.full((5, 2), 9, np.float32)))


@pytest.mark.parametrize("file", LAYOUTS)
def test_what_stays(facexlib: Path, tmp_path: Path, file: str) -> None:
    """Both networks have the same classes in another order: each class by its name stays or not."""
    picture = np.broadcast_to(COLOURS, (512, 512, 3)).copy()
    bisenet = LAYOUTS["parsing_bisenet.pth"].classes
    white = {bisenet[label] for label in WHITE}
    for label, name in enumerate(LAYOUTS[file].classes):
        parser = FacexlibParser(save(tmp_path / file, label))
        grey = grey_face(picture, placed(TEMPLATE.astype(np.float32)), parser)
        assert grey.shape == (512, 512, 3) and grey.dtype == np.float32
        assert np.allclose(grey, 1.0 if name in white else GREY, atol=1e-3), name


def test_the_shipped_parser_keeps_face_and_hair(photo: tuple[Picture, Face]) -> None:
    picture, face = photo
    grey = grey_face(picture, face, SelfieParser())
    crop, _ = align_face(picture, face)
    expected = crop.astype(np.float32) @ np.array([0.299, 0.587, 0.114]) / 255
    for x, y in ((256, 314), (193, 240), (256, 440), (256, 60)):  # nose, eye, chin, hair
        assert np.allclose(grey[y, x], expected[y, x], atol=1e-5), (x, y)
    for x, y in ((20, 40), (500, 480), (256, 500)):  # background, clothes, neck
        assert (grey[y, x] == 1).all(), (x, y)
    assert 0.2 < (grey < 1).mean() < 0.6
