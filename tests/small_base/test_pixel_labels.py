"""Labels of small pictures: seen at the size at which the network sees the face, drawn where it sees none."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_parsing import BACKGROUND, CLOTHES, FACE_SKIN, HAIR, INPUT, SelfieParser
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.small_base.pixel_labels import draw_labels, label_pixels, least_covered
from dp_adapter.small_base.scene_measures import resize


@pytest.fixture(scope="module")
def parser() -> SelfieParser:
    return SelfieParser()


@pytest.fixture(scope="module")
def picture(people: list[Path]) -> Picture:
    portrait = cv2.imread(str(people[0]))
    assert portrait is not None
    side = min(portrait.shape[:2])
    return resize(np.ascontiguousarray(portrait[:side, :side, ::-1], np.uint8), INPUT)


def face_at(x1: float, y1: float, x2: float, y2: float) -> Face:
    return Face(np.array([x1, y1, x2, y2], np.float32), np.zeros((5, 2), np.float32), 1.0)


def test_a_photograph_is_left_to_the_network(parser: SelfieParser, picture: Picture) -> None:
    faces = YuNet(tiles=False).detect(picture)
    labels = label_pixels(parser, picture, faces)
    assert len(faces) == 1 and least_covered(labels, faces) > 0.9
    assert np.array_equal(labels, parser.logits(picture).argmax(-1))


def test_where_no_face_is_seen_it_is_drawn_or_left(parser: SelfieParser) -> None:
    plain, face = np.full((INPUT, INPUT, 3), 128, np.uint8), face_at(96, 60, 160, 140)
    assert least_covered(label_pixels(parser, plain, [face], drawing=False), [face]) < 0.6
    assert np.array_equal(label_pixels(parser, plain, [face]), draw_labels([face]))
    assert (label_pixels(parser, plain, []) == BACKGROUND).mean() > 0.9


def test_a_drawn_person() -> None:
    labels = draw_labels([face_at(96, 60, 160, 140)])
    assert labels[100, 128] == FACE_SKIN and labels[52, 128] == HAIR and labels[190, 128] == CLOTHES
    assert labels[160, 128] != CLOTHES  # a neck
    assert labels[100, 20] == labels[10, 240] == BACKGROUND
    assert least_covered(labels, [face_at(96, 60, 160, 140)]) == 1
    assert (labels[:, 129:] == labels[:, 128:0:-1][:, : labels.shape[1] - 129]).mean() > 0.98  # it faces the camera


def test_a_face_beyond_the_edge_counts_with_what_is_inside() -> None:
    labels = np.full((INPUT, INPUT), BACKGROUND, np.uint8)
    assert least_covered(labels, [face_at(-90, 0, -10, 90)]) == 1  # nothing of it can be judged
    assert least_covered(labels, [face_at(-20, 0, 60, 90)]) == 0
