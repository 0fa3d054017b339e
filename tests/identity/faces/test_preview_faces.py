"""Faces in pictures as x̂0 shows them; benchmarks/regions.py measures the same at length."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import scenes
from dp_adapter.errors import FaceError
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_parsing import PARTS, SelfieParser
from dp_adapter.identity.faces.multiscale_detection import iou
from dp_adapter.identity.faces.preview_faces import PreviewFinder
from dp_adapter.identity.faces.preview_net import PreviewNetwork
from dp_adapter.identity.pictures.picture_files import Picture

SPOILED = {
    "pixel": (scenes.pixel_noise, 0.2),
    "cells": (scenes.cell_noise, 0.2),
    "blocks": (scenes.block_noise, 0.1),
    "blur": (scenes.blur, 0.2),
    "wiener": (scenes.wiener, 0.3),
    "latent": (scenes.latent_wiener, 0.7),
}


class Says:
    """A detector that finds what it was told."""

    name = "says"

    def __init__(self, *faces: Face) -> None:
        self._faces = list(faces)

    def detect(self, picture: Picture) -> list[Face]:
        return self._faces


@pytest.fixture(scope="module")
def finder() -> PreviewFinder:
    return PreviewFinder(YuNet(), SelfieParser())


@pytest.fixture(scope="module")
def clean(astronaut: Picture) -> tuple[Face, Floats]:
    face = YuNet().detect(astronaut)[0]
    return face, SelfieParser().parse(astronaut, face)["face"]


def overlap(a: Floats, b: Floats) -> float:
    return float(((a > 0.5) & (b > 0.5)).sum() / ((a > 0.5) | (b > 0.5)).sum())


def spoil(picture: Picture, kind: str, seed: int = 0) -> Picture:
    noise, level = SPOILED[kind]
    values = picture.astype(np.float32) / np.float32(255)
    return scenes.to_picture(noise(np.random.default_rng(seed), values, level))


def test_a_sharp_picture_is_left_to_detector_and_parser(
    finder: PreviewFinder, astronaut: Picture, clean: tuple[Face, Floats]
) -> None:
    (face,) = finder.detect(astronaut)
    assert np.array_equal(face.box, clean[0].box) and np.array_equal(face.points, clean[0].points)
    parts = finder.parse(astronaut, face)
    assert tuple(parts) == PARTS
    assert all(mask.shape == (512, 512) and mask.dtype == np.float32 for mask in parts.values())
    assert overlap(parts["face"], clean[1]) > 0.95


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_picture_has_the_same_face(
    finder: PreviewFinder, astronaut: Picture, clean: tuple[Face, Floats], kind: str
) -> None:
    picture = spoil(astronaut, kind)
    face = finder.detect(picture)[0]
    assert iou(face.box, clean[0].box) > 0.5
    mask = finder.parse(picture, face)["face"]
    assert 0 <= mask.min() <= mask.max() <= 1 and overlap(mask, clean[1]) > 0.6


@pytest.mark.parametrize("side", [64, 128])
def test_small_previews(finder: PreviewFinder, astronaut: Picture, clean: tuple[Face, Floats], side: int) -> None:
    import cv2

    small = np.asarray(cv2.resize(spoil(astronaut, "cells"), (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    face = finder.detect(small)[0]
    assert iou(face.box * np.float32(512 / side), clean[0].box) > 0.5
    mask = finder.parse(small, face)["face"]
    assert mask.shape == (side, side)
    assert overlap(np.asarray(cv2.resize(mask, (512, 512)), np.float32), clean[1]) > 0.6


def test_a_wide_preview(finder: PreviewFinder, astronaut: Picture, clean: tuple[Face, Floats]) -> None:
    wide = np.concatenate([np.full((512, 300, 3), 90, np.uint8), spoil(astronaut, "cells")], 1)
    face = finder.detect(wide)[0]
    assert iou(face.box - np.array([300, 0, 300, 0], np.float32), clean[0].box) > 0.5
    mask = finder.parse(wide, face)["face"]
    assert mask.shape == (512, 812) and overlap(mask[:, 300:], clean[1]) > 0.6


@pytest.mark.parametrize("kind", [None, *SPOILED])
def test_from_near_a_face_has_the_same_outline_for_half_of_the_work(
    finder: PreviewFinder, astronaut: Picture, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = astronaut if kind is None else spoil(astronaut, kind)
    face = finder.detect(picture)[0]
    runs: list[int] = []
    logits = SelfieParser.logits

    def count(parser: SelfieParser, square: Picture) -> Floats:
        runs.append(len(square))
        return logits(parser, square)

    monkeypatch.setattr(SelfieParser, "logits", count)
    whole, near = finder.parse(picture, face), PreviewFinder(YuNet(), SelfieParser(), near=True).parse(picture, face)
    assert len(runs) == 3, "two looks of the parser, then one"
    assert tuple(near) == PARTS and all(mask.shape == (512, 512) for mask in near.values())
    assert overlap(near["face"], whole["face"]) > 0.95
    assert overlap(near["mouth"], whole["mouth"]) > 0.99
    assert near["background"][:, -1].max() == 0 < whole["background"][:, -1].max()


@pytest.mark.parametrize("kind", SPOILED)
def test_no_face_where_there_is_none(finder: PreviewFinder, kind: str) -> None:
    random = np.random.default_rng(4)
    pictures = [
        np.full((512, 512, 3), 0.5, np.float32),
        scenes.draw_behind(random, 512),
        scenes.draw_behind(random, 512),
    ]
    for picture in pictures:
        assert finder.detect(spoil(scenes.to_picture(picture), kind)) == []


def test_the_same_picture_gives_the_same_answer(finder: PreviewFinder, astronaut: Picture) -> None:
    picture = spoil(astronaut, "blocks")
    again = PreviewFinder(YuNet(), SelfieParser())
    for a, b in zip(finder.detect(picture), again.detect(picture), strict=True):
        assert np.array_equal(a.box, b.box) and np.array_equal(a.points, b.points) and a.score == b.score
        one, two = finder.parse(picture, a), again.parse(picture, b)
        assert all(np.array_equal(one[name], two[name]) for name in PARTS)


def test_whom_is_believed(astronaut: Picture, clean: tuple[Face, Floats]) -> None:
    def found(picture: Picture, *faces: Face) -> list[Face]:
        return PreviewFinder(Says(*faces), SelfieParser()).detect(picture)

    face, _ = clean
    vague, sure = Face(face.box, face.points, 0.65), Face(face.box, face.points, 0.9)
    empty = np.full((512, 512, 3), 128, np.uint8)
    assert found(empty, vague) == [], "a weak finding needs the network's word"
    assert found(empty, sure) == [sure]
    assert iou(found(astronaut)[0].box, face.box) > 0.5, "the network is believed without the detector"
    both = found(astronaut, vague)[0]
    assert both.score >= 0.65 and iou(both.box, face.box) > 0.7
    assert found(astronaut, sure)[0] is sure, "good points are not mixed with worse ones"


def test_two_people_have_two_regions(finder: PreviewFinder, portraits: list[Picture]) -> None:
    import cv2

    pair = np.hstack([cv2.resize(portrait, (256, 320)) for portrait in portraits[1:6:4]]).astype(np.uint8)
    spoiled = spoil(np.ascontiguousarray(np.pad(pair, ((96, 96), (0, 0), (0, 0)), mode="edge")), "wiener")
    left, right = sorted(finder.detect(spoiled), key=lambda face: float(face.centre[0]))
    masks = [finder.parse(spoiled, face)["face"] for face in (left, right)]
    assert masks[0][:, 256:].sum() < 0.02 * masks[0].sum() and masks[1][:, :256].sum() < 0.02 * masks[1].sum()
    assert min(mask.max() for mask in masks) > 0.9


def test_a_face_without_size_is_said(finder: PreviewFinder, clean: tuple[Face, Floats]) -> None:
    points = clean[0].points
    with pytest.raises(FaceError, match="too small to be parsed"):
        finder.parse(np.zeros((64, 64, 3), np.uint8), Face(np.array([9, 9, 9, 9], np.float32), points, 1.0))


def test_the_network_gives_faces_in_px_of_the_picture(astronaut: Picture, clean: tuple[Face, Floats]) -> None:
    network = PreviewNetwork()
    for side in (128, 256):
        sight = network.look(astronaut, side, 0.5)
        assert sight.mask.shape == (512, 512) and sight.mask.dtype == np.float32
        assert overlap(sight.mask * (clean[1] > 0), clean[1]) > 0.5
        assert iou(sight.faces[0].box, clean[0].box) > 0.5
        assert np.abs(sight.faces[0].points - clean[0].points).max() < 0.25 * clean[0].size
    assert network.look(astronaut, 128, 1.0).faces == []


def test_scenes_of_the_benchmark(astronaut: Picture, clean: tuple[Face, Floats]) -> None:
    face, mask = clean
    portrait = scenes.CutOut(astronaut, mask, mask, face.box, face.points)
    behind = np.full((256, 256, 3), 0.5, np.float32)
    made = [scenes.compose_scene(np.random.default_rng(1), [portrait] * 2, [0.3, 0.2], behind) for _ in range(2)]
    (picture, placed), (again, _) = made
    assert (
        np.array_equal(picture, again) and picture.shape == (256, 256, 3) and 0 <= picture.min() <= picture.max() <= 1
    )
    assert len(placed) == 2 and iou(placed[0].box, placed[1].box) == 0
    for each in placed:
        x, y = each.points[2].round().astype(int).tolist()
        assert each.face[y, x] > 0.9, "the region lies where the points do"
        assert each.points[0, 0] < each.points[1, 0], "left stays left in a mirrored portrait"
    assert [round(scenes.sigma(progress), 2) for progress in (0.15, 0.3, 0.55)] == [6.44, 3.32, 1.37]
