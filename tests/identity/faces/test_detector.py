from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dp_adapter.errors import CatalogError
from dp_adapter.identity.encoders import shipped_networks as shipped_module
from dp_adapter.identity.encoders.shipped_networks import YUNET, open_network, shipped_path
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.multiscale_detection import detect_at_scales, drop_duplicates, iou
from dp_adapter.identity.pictures.picture_files import Picture


def on_canvas(picture: Picture) -> Picture:
    """The picture as the first rung of the ladder shows it."""
    seen: list[Picture] = []
    detect_at_scales(picture, lambda canvas: seen.append(canvas) or [], tiles=False)
    return seen[0]


def test_agrees_with_opencv(portraits: list[Picture]) -> None:
    """The same network in OpenCV on the same canvas; and on the bare picture, which differs by its scale only."""
    reference = cv2.FaceDetectorYN.create(str(shipped_path(YUNET)), "", (640, 640), 0.6)
    mine = YuNet()
    for portrait in portraits[::2]:
        canvas = on_canvas(portrait)
        reference.setInputSize((640, 640))
        rows = np.asarray(reference.detect(np.ascontiguousarray(canvas[:, :, ::-1]))[1])
        found = mine.detect(canvas)
        assert len(found) == len(rows) == 1
        row = rows[0]
        assert iou(np.r_[row[:2], row[:2] + row[2:4]], found[0].box) > 0.98
        assert np.abs(row[4:14].reshape(5, 2) - found[0].points).max() < 0.5
        assert found[0].score == pytest.approx(float(row[14]), abs=0.01)
        height, width = portrait.shape[:2]
        reference.setInputSize((width, height))
        row = np.asarray(reference.detect(np.ascontiguousarray(portrait[:, :, ::-1]))[1])[0]
        assert iou(np.r_[row[:2], row[:2] + row[2:4]], mine.detect(portrait)[0].box) > 0.85


@pytest.mark.parametrize("part", [1.0, 0.8, 0.6, 0.5])
def test_close_ups_are_found(astronaut: Picture, yunet: YuNet, part: float) -> None:
    """The frame cuts the face down to its middle half; without the ladder nothing is found from 0.8 on."""
    whole = yunet.detect(astronaut)[0]
    half = int(whole.size * part / 2)
    x, y = (whole.centre - half).astype(int).tolist()
    close = astronaut[y : y + 2 * half, x : x + 2 * half]
    found = yunet.detect(close)
    assert len(found) == 1
    assert np.abs(found[0].points + np.array([x, y]) - whole.points).max() < 0.1 * whole.size
    assert found[0].box.min() >= 0 and found[0].box.max() <= 2 * half


@pytest.mark.parametrize("side", [2600, 4000])
def test_tiny_faces_are_found(astronaut: Picture, side: int) -> None:
    small = np.asarray(cv2.resize(astronaut, (110, 110), interpolation=cv2.INTER_AREA), np.uint8)  # face of 20 px
    scene = np.full((side // 2, side, 3), 120, np.uint8)
    scene[300:410, side - 500 : side - 390] = small
    assert YuNet(tiles=False).detect(scene) == []
    found = YuNet().detect(scene)
    assert len(found) == 1
    assert np.abs(found[0].centre - (side - 500 + 225 * 110 / 512, 300 + 118 * 110 / 512)).max() < 6


def test_several_faces_are_all_found(portraits: list[Picture], yunet: YuNet) -> None:
    row = np.hstack([cv2.resize(portrait, (200, 250)) for portrait in portraits[:6]]).astype(np.uint8)
    assert len(yunet.detect(row)) == 6


def test_no_face_in_noise(yunet: YuNet) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 900, 3), np.uint8)
    assert yunet.detect(noise) == []


def test_distinct_keeps_the_best_of_overlapping_faces() -> None:
    points = np.zeros((5, 2), np.float32)
    boxes = ([0, 0, 10, 10], [1, 1, 11, 11], [20, 0, 30, 10])
    faces = [Face(np.array(box, np.float32), points, score) for box, score in zip(boxes, (0.7, 0.9, 0.8), strict=True)]
    assert [face.score for face in drop_duplicates(faces)] == [0.9, 0.8]


def test_missing_and_damaged_networks_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped_module, "MODELS", tmp_path)
    with pytest.raises(CatalogError, match="is missing from"):
        YuNet().detect(np.zeros((64, 64, 3), np.uint8))
    (tmp_path / YUNET).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CatalogError, match="cut short"):
        shipped_path(YUNET)
    (tmp_path / YUNET).write_bytes(b"x" * 200_000)
    with pytest.raises(CatalogError, match=r"onnxruntime \S+ cannot read"):
        open_network(tmp_path / YUNET)
    with pytest.raises(CatalogError, match="onnxruntime has no NoSuchProvider"):
        open_network(tmp_path / YUNET, ["NoSuchProvider"])


def test_networks_load_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    for name in (YUNET, shipped_module.SFACE, shipped_module.SELFIE):
        open_network(shipped_path(name))
    assert capfd.readouterr() == ("", "")
