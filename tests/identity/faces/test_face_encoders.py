from __future__ import annotations

import cv2
import numpy as np
import pytest

from dp_adapter.errors import FaceError
from dp_adapter.identity.encoders.shipped_networks import SFACE, shipped_path
from dp_adapter.identity.faces.combine_photos import agreement, combine
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Floats, choose, norm_crop
from dp_adapter.identity.faces.face_encoders import SFace
from dp_adapter.identity.pictures.picture_files import Picture


@pytest.fixture(scope="module")
def vectors(portraits: list[Picture], yunet: YuNet) -> Floats:
    sface = SFace()
    return np.stack([sface.embed(portrait, choose(yunet.detect(portrait))) for portrait in portraits])


def test_agrees_with_opencv(astronaut: Picture, yunet: YuNet) -> None:
    face = yunet.detect(astronaut)[0]
    try:
        reference = cv2.FaceRecognizerSF.create(str(shipped_path(SFACE)), "")
    except cv2.error:
        pytest.skip(f"OpenCV {cv2.__version__} cannot read networks of opset 21")
    bgr = np.ascontiguousarray(astronaut[:, :, ::-1])
    row = np.r_[face.box[:2], face.box[2:] - face.box[:2], face.points.ravel(), face.score].astype(np.float32)
    aligned = reference.alignCrop(bgr, row)
    assert np.abs(aligned[:, :, ::-1].astype(int) - norm_crop(astronaut, face.points, 112)).max() <= 3
    expected = np.asarray(reference.feature(aligned))[0]
    mine = SFace().embed(astronaut, face)
    assert mine.shape == (128,) and np.linalg.norm(mine) == pytest.approx(1, abs=1e-5)
    assert float(mine @ expected / np.linalg.norm(expected)) > 0.999


def test_tells_sixteen_people_apart(vectors: Floats) -> None:
    cosines = vectors @ vectors.T
    person = np.arange(len(vectors)) // 2
    pairs = np.triu(np.ones_like(cosines, bool), 1)
    same = cosines[pairs & (person[:, None] == person)]
    different = cosines[pairs & (person[:, None] != person)]
    auc = float((same[:, None] > different).mean())
    assert len(same) == 16 and auc > 0.99
    assert same.mean() > different.mean() + 0.4
    assert same.min() > 0.363 and (different < 0.363).mean() > 0.98  # opencv_zoo's threshold


def test_agreement_names_the_stranger(vectors: Floats) -> None:
    group = np.stack([vectors[0], vectors[1], vectors[6]])
    values = agreement(group)
    assert int(np.argmin(values)) == 2 and values[2] < 0.4 < values[0]
    assert agreement(group[:1]).tolist() == [1.0]


def test_combine() -> None:
    two = np.array([[3, 0], [0, 1]], np.float32)
    assert combine(two).tolist() == [[1.5, 0.5]]
    assert np.allclose(combine(two, how="normalised_average"), [[2**0.5, 2**0.5]])
    assert combine(two, [1, 3], "weighted").tolist() == [[0.75, 0.75]]
    assert combine(two, how="best", qualities=[0.2, 0.9]).tolist() == [[0, 1]]
    assert combine(two, [5, 1], how="best", qualities=[0.2, 0.9]).tolist() == [[3, 0]]
    assert combine(two, how="concatenate").tolist() == two.tolist()
    assert combine(two, [0, 1], how="concatenate").tolist() == [[0, 1]]
    assert combine(two, [0, 0.5], how="average").tolist() == [[0, 1]]


@pytest.mark.parametrize("weights", [[1], [1, -1], [1, float("nan")], [0, 0]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(FaceError, match=r"2 photos need 2 weight values|No photo"):
        combine(np.ones((2, 4), np.float32), weights)
