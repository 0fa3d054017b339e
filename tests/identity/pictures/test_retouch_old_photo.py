"""Old photos, made old here: what is found, what is taken out, and that a clean photo stays what it is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_encoders import SFace
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.identity.pictures.retouch_old_photo import find_damage, retouch

SFACE = SFace()


@pytest.fixture(scope="module")
def photo(portrait: Path) -> tuple[Picture, Face]:
    picture = load_picture(portrait)
    (face,) = YuNet().detect(picture)
    return picture, face


def sepia(picture: Picture) -> Picture:
    grey = picture @ np.array([0.299, 0.587, 0.114]) / 255
    return (np.clip(grey[..., None] * [1.07, 0.74, 0.43] + [0, 0.1, 0.1], 0, 1) * 255).astype(np.uint8)


def creased(picture: Picture, face: Face, seed: int) -> Picture:
    """Four white creases over the face, as wide as on a folded print."""
    random, made = np.random.default_rng(seed), picture.copy()
    for _ in range(4):
        angle, middle = random.uniform(0, np.pi), face.centre + random.uniform(-0.4, 0.4, 2) * face.size
        way = np.array([np.cos(angle), np.sin(angle)]) * face.size
        line = np.array([middle - way, middle + random.normal(0, 0.03, 2) * face.size, middle + way])
        cv2.polylines(
            made, [line.astype(np.int32)], False, (250, 240, 215), max(1, round(0.015 * face.size)), cv2.LINE_AA
        )
    return made


def grainy(picture: Picture, amount: float = 14) -> Picture:
    noise = np.random.default_rng(0).normal(0, amount, picture.shape[:2])
    return np.clip(picture + noise[..., None], 0, 255).astype(np.uint8)


def likeness(one: Picture, other: Picture, face: Face) -> float:
    first, second = (SFACE.embed(picture, face) for picture in (one, other))
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_a_clean_photo_stays_the_very_same(photo: tuple[Picture, Face]) -> None:
    assert not find_damage(*photo).old and find_damage(*photo).repairs() == ()
    assert retouch(*photo) is photo[0]


def test_tint_goes_and_grey_stays(photo: tuple[Picture, Face]) -> None:
    picture, face = photo
    found = find_damage(sepia(picture), face)
    assert found.toned and found.tinted and found.old and found.repairs() == ("tint",)
    made = retouch(sepia(picture), face)
    assert (made == made[..., :1]).all()
    assert likeness(made, picture, face) > likeness(sepia(picture), picture, face)
    grey = np.repeat(np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)[..., None], 3, axis=2)
    assert find_damage(grey, face).toned and not find_damage(grey, face).tinted
    assert retouch(grey, face) is grey


@pytest.mark.parametrize("toned", [False, True])
def test_creases_go(photo: tuple[Picture, Face], toned: bool) -> None:
    picture, face = photo
    before: list[float] = []
    after: list[float] = []
    for seed in range(4):
        damaged = creased(sepia(picture) if toned else picture, face, seed)
        assert "creases and specks" in find_damage(damaged, face).repairs()
        before.append(likeness(damaged, picture, face))
        after.append(likeness(retouch(damaged, face), picture, face))
    assert np.mean(after) > np.mean(before) + 0.015, (before, after)


@pytest.mark.parametrize("amount", [8, 14])
def test_grain_of_a_toned_photo_goes(photo: tuple[Picture, Face], amount: float) -> None:
    picture, face = photo
    damaged = grainy(sepia(picture), amount)
    assert (
        find_damage(damaged, face).grain == pytest.approx(amount, abs=2)
        and "grain" in find_damage(damaged, face).repairs()
    )
    made = retouch(damaged, face)
    assert find_damage(made, face).grain < amount / 2
    assert likeness(made, picture, face) > likeness(damaged, picture, face)
    assert (
        find_damage(grainy(picture, amount), face).repairs() == ()
    )  # in colour, encoders take it better than its removal


def test_only_the_surroundings_of_the_face_are_cleaned(photo: tuple[Picture, Face]) -> None:
    picture, face = photo
    damaged = grainy(np.repeat(picture[..., 1:2], 3, axis=2))
    changed = np.argwhere((retouch(damaged, face) != damaged).any(-1))
    assert 0 < np.ptp(changed, axis=0).max() < 2.7 * face.size


def test_clean_people_are_left_nearly_alone(people: list[Path]) -> None:
    for path in people[::4]:
        picture = load_picture(path)
        face = max(YuNet().detect(picture), key=lambda one: one.size)
        assert not find_damage(picture, face).toned
        assert likeness(retouch(picture, face), picture, face) > 0.98


def test_a_tiny_face_at_the_edge_raises_nothing() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    points = np.array([[3, 3], [7, 3], [5, 5], [3, 7], [7, 7]], np.float32)
    face = Face(np.array([0, 0, 10, 10], np.float32), points, 1.0)
    assert retouch(picture, face).shape == picture.shape
