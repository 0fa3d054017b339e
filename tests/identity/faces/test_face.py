from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dp_adapter.errors import FaceError
from dp_adapter.identity.faces.face import TEMPLATE, Face, choose, norm_crop, similarity, template
from dp_adapter.identity.faces.face_quality import NOSE_DOWN, pose, quality
from dp_adapter.identity.pictures.draw_faces import annotate
from dp_adapter.identity.pictures.picture_files import Picture


def face(x: float, y: float, size: float, embedding: list[float] | None = None) -> Face:
    box = np.array([x, y, x + size, y + size], np.float32)
    vector = None if embedding is None else np.array(embedding, np.float32)
    return Face(box, TEMPLATE * np.float32(size / 112) + box[:2], 0.9, vector)


def test_similarity_recovers_a_known_transform() -> None:
    angle, scale = 0.3, 1.7
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = (TEMPLATE @ turn.T + (5, -9)).astype(np.float32)
    assert np.allclose(similarity(TEMPLATE, moved), np.c_[turn, (5, -9)], atol=1e-4)


def test_mirrored_points_do_not_mirror_the_crop() -> None:
    mirrored = TEMPLATE * np.array([-1, 1], np.float32) + np.array([112, 0], np.float32)
    assert np.linalg.det(similarity(mirrored, TEMPLATE)[:, :2]) > 0


@pytest.mark.parametrize(("size", "left_eye"), [(112, 38.2946), (224, 76.5892), (128, 46.2946), (512, 185.1784)])
def test_template_sizes(size: int, left_eye: float) -> None:
    assert float(template(size)[0, 0]) == pytest.approx(left_eye, abs=1e-3)


def test_sizes_the_encoders_do_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 112 or 128"):
        template(200)


def test_norm_crop_puts_the_points_on_the_template() -> None:
    picture = np.zeros((400, 400, 3), np.uint8)
    points = (TEMPLATE * np.float32(2) + np.array([90, 60], np.float32)).astype(np.float32)
    for x, y in points.round().astype(int).tolist():
        cv2.circle(picture, (x, y), 4, (255, 255, 255), -1)
    crop = norm_crop(picture, points, 112)
    assert all(crop[round(y), round(x), 0] > 200 for x, y in TEMPLATE.tolist())
    outside = norm_crop(np.full((30, 30, 3), 255, np.uint8), TEMPLATE, 112)
    assert outside[60, 60].max() == 0 and outside[5, 5].min() == 255


def test_coinciding_points_are_refused() -> None:
    with pytest.raises(FaceError, match="coincide"):
        norm_crop(np.zeros((50, 50, 3), np.uint8), np.ones((5, 2), np.float32), 112)


def test_choose() -> None:
    small_left, big, right = face(10, 10, 40, [1, 0]), face(100, 10, 90, [0, 1]), face(300, 200, 50, [1, 1])
    faces = [big, right, small_left]
    assert choose(faces) is big
    assert choose(faces, "left") is small_left
    assert choose(faces, "right") is right
    assert choose(faces, "centre", picture_size=(400, 640)) is right
    assert [choose(faces, "index", index=i) for i in range(3)] == [small_left, big, right]
    assert choose(faces, "like", like=np.array([5, 0.1], np.float32)) is small_left


def test_choices_that_do_not_exist_are_explained() -> None:
    with pytest.raises(
        FaceError, match=r"Face 4 was asked for, but 2 faces were found\. .*from the left.* face 1 to 2"
    ):
        choose([face(0, 0, 40), face(90, 0, 40)], "index", index=3)
    with pytest.raises(FaceError, match="No face"):
        choose([])
    with pytest.raises(FaceError, match="one encoder"):
        choose([face(0, 0, 40)], "like", like=np.ones(4, np.float32))


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(0, 0, 0), (30, 0, 0), (-45, 0, 10), (0, 25, 0), (15, -20, -30)])
def test_pose_of_a_rigid_head(yaw: float, pitch: float, roll: float) -> None:
    height, nose_y = 2.3, 2.3 * NOSE_DOWN
    head = np.array([[-1, 0, 0], [1, 0, 0], [0, nose_y, 0.7], [-0.8, height, 0], [0.8, height, 0]])  # x, y down, z out
    a, b, c = np.radians([yaw, pitch, roll])
    turn_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    points = (head @ (turn_z @ turn_x @ turn_y).T)[:, :2] * 30 + 100
    found = pose(points.astype(np.float32))
    assert np.abs(np.array(found) - (yaw, pitch, roll)).max() < 10


def test_quality_falls_with_blur_and_size(astronaut: Picture) -> None:
    points = np.array([[206, 112], [241, 109], [226, 133], [210, 146], [243, 144]], np.float32)
    found = Face(np.array([180, 63, 270, 174], np.float32), points, 0.94)
    sharp = quality(astronaut, found)
    blurred = quality(np.asarray(cv2.GaussianBlur(astronaut, (0, 0), 4), np.uint8), found)
    small = quality(
        np.asarray(cv2.resize(astronaut, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA), np.uint8),
        replace(found, box=found.box * np.float32(0.3), points=found.points * np.float32(0.3)),
    )
    assert sharp.warnings() == () and 0.6 < sharp.score <= 1
    assert blurred.score < sharp.score and any("blurred" in words for words in blurred.warnings())
    assert small.score < 0.5 * sharp.score and any("too small" in words for words in small.warnings())


@pytest.mark.parametrize("side", [40, 512, 3000])
def test_annotate_is_legible_at_any_size(side: int) -> None:
    picture = np.full((side, side, 3), 128, np.uint8)
    found = face(side * 0.7, side * 0.02, side * 0.28)
    drawn = annotate(picture, [found], [quality(picture, found)], {"face": np.zeros((side, side), np.float32)})
    assert max(drawn.shape) >= 640 and drawn.shape[0] % side == 0
    letters = (drawn > 190).all(-1)
    rows = np.flatnonzero(letters.max(1))
    assert 0.008 * drawn.shape[0] < rows[-1] - rows[0] < 0.2 * drawn.shape[0]
    assert picture.min() == picture.max() == 128
