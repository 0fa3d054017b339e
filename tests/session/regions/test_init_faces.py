"""Whose a face is that is there already: one photograph of each person in the init picture, another in the request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.session import Prepared, Scene, Session
from dp_adapter.session.regions.face_matching import FacePosition, recognise
from tests.session.conftest import Request

SIDE = 192  # px of a person's photograph in the init picture
INIT = {"sources": ["init"]}
LEFT, MIDDLE, RIGHT = FacePosition(0.2, 0.3, 0.2), FacePosition(0.5, 0.3, 0.2), FacePosition(0.8, 0.3, 0.2)


@pytest.fixture(scope="module")
def shown(people: list[Path]) -> list[Picture]:
    """The second photographs of the first four people, squares."""
    found: list[Picture] = []
    for path in people[1:8:2]:
        picture = load_picture(path)
        side = min(picture.shape[:2])
        found.append(
            np.asarray(cv2.resize(picture[:side, :side], (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
        )
    return found


@pytest.fixture
def photos(people: list[Path]) -> list[dict[str, Any]]:
    """The first photographs of the same people, as the request's persons."""
    return [{"image": str(path), "identity": number} for number, path in enumerate(people[0:8:2])]


def beside(*pictures: Picture) -> Scene:
    """An img2img job of these pictures from left to right."""
    return Scene("sd15", SIDE * len(pictures), SIDE, inits=(np.ascontiguousarray(np.concatenate(pictures, 1)),))


def places(prepared: Prepared, count: int) -> list[list[int]]:
    """Per person the places from the left, of ``count``, in which nearly all of their region is."""
    found: list[list[int]] = []
    for identity in prepared.injection.identities:
        assert identity.region is not None
        parts = identity.region[0].chunk(count, dim=1)
        total = identity.region.sum()
        found.append([n for n, part in enumerate(parts) if part.sum() > 0.02 * total])
    return found


def told(prepared: Prepared) -> list[str]:
    return [person.region for person in prepared.explanation.persons]


def test_each_person_goes_to_the_face_most_like_their_photos(
    portrait_session: Session, request_of: Request, shown: list[Picture], photos: list[dict[str, Any]]
) -> None:
    scene = beside(shown[1], shown[0])
    prepared = portrait_session.prepare(request_of(*photos[:2], tracking=INIT), scene)
    assert places(prepared, 2) == [[1], [0]]
    assert told(prepared)[0] == "face 2 of the init picture, counted from the left, the most like the photos"
    three = portrait_session.prepare(request_of(*photos[:3], tracking=INIT), beside(shown[2], shown[0], shown[1]))
    assert places(three, 3) == [[1], [2], [0]]


def test_strangers_go_from_left_to_right(
    portrait_session: Session, request_of: Request, shown: list[Picture], photos: list[dict[str, Any]]
) -> None:
    """As where faces are exchanged: nobody in the picture is in the photos."""
    prepared = portrait_session.prepare(request_of(*photos[:2], tracking=INIT), beside(shown[2], shown[3]))
    assert places(prepared, 2) == [[0], [1]]
    assert told(prepared)[0] == "face 1 of the init picture, counted from the left"


def test_more_faces_than_people(
    portrait_session: Session, request_of: Request, shown: list[Picture], photos: list[dict[str, Any]]
) -> None:
    scene = beside(shown[3], shown[1], shown[0])
    prepared = portrait_session.prepare(request_of(*photos[:2], tracking=INIT), scene)
    assert places(prepared, 3) == [[2], [1]]
    alone = portrait_session.prepare(request_of(photos[0], tracking=INIT), scene)
    assert places(alone, 3) == [[2]], "one person, too"


def test_more_people_than_faces(
    portrait_session: Session, request_of: Request, shown: list[Picture], photos: list[dict[str, Any]]
) -> None:
    """The face is that of the person it is like; who has none keeps off it."""
    prepared = portrait_session.prepare(request_of(*photos[:2], tracking=INIT), beside(shown[1]))
    first, second = (identity.region for identity in prepared.injection.identities)
    assert first is not None and second is not None
    assert torch.allclose(first, 1 - second) and 0.1 < float(second.mean()) < 0.6
    assert told(prepared) == [
        "what the other persons leave of the picture, since nothing says where the face will be",
        "face 1 of the init picture, counted from the left, the most like the photos",
    ]
    assert prepared.explanation.span[0] == 0.15


def test_a_face_in_anothers_region_is_theirs(
    portrait_session: Session, request_of: Request, shown: list[Picture], photos: list[dict[str, Any]]
) -> None:
    left = {"kind": "box", "box": {"x1": 0.5}, "identity": 1}
    settings = request_of(*photos[:2], tracking=INIT, regions=[left])
    strangers = portrait_session.prepare(settings, beside(shown[2], shown[3]))
    assert places(strangers, 2) == [[1], [0]]
    txt2img = portrait_session.prepare(settings, Scene("sd15", 2 * SIDE, SIDE))
    first, second = (identity.region for identity in txt2img.injection.identities)
    assert first is not None and second is not None and torch.equal(first, 1 - second), "who has none keeps out of it"


def test_each_picture_of_a_batch_has_its_own(
    portrait_session: Session, request_of: Request, shown: list[Picture], photos: list[dict[str, Any]]
) -> None:
    (one,), (other,) = beside(shown[0], shown[1]).inits, beside(shown[1], shown[0]).inits
    scene = replace(beside(shown[0], shown[1]), inits=(one, other))
    prepared = portrait_session.prepare(request_of(*photos[:2], tracking=INIT), scene)
    first, second = (identity.region for identity in prepared.injection.identities)
    assert first is not None and second is not None and len(first) == len(second) == 2

    def left(mask: Tensor) -> bool:
        return bool(mask[:, :SIDE].sum() > mask[:, SIDE:].sum())

    assert [left(mask) for mask in first] == [True, False] and [left(mask) for mask in second] == [False, True]


def test_they_stay_theirs_while_the_picture_forms(
    portrait_session: Session, request_of: Request, shown: list[Picture], photos: list[dict[str, Any]]
) -> None:
    """The previews go on from the init picture, not from left to right again."""
    scene = beside(shown[1], shown[0])
    prepared = portrait_session.prepare(request_of(*photos[:2]), scene)
    tracker = prepared.tracker
    assert tracker is not None
    tracker.restart()
    assert places(prepared, 2) == [[1], [0]]
    tracker.apply(tracker.look((*scene.inits, *scene.inits), 0.2))
    assert places(prepared, 2) == [[1], [0]]
    assert [sorted(of) for of in tracker.positions.values()] == [[0, 1], [0, 1]]


def test_who_is_never_found_leaves_the_others_their_places(
    portrait_session: Session, request_of: Request, shown: list[Picture], photos: list[dict[str, Any]]
) -> None:
    prepared = portrait_session.prepare(request_of(*photos[:2]), Scene("sd15", 2 * SIDE, SIDE))
    tracker = prepared.tracker
    assert tracker is not None
    tracker.restart()
    alone = np.concatenate([shown[0], np.full_like(shown[0], 110)], 1)
    tracker.apply(tracker.look([alone], 0.3))
    tracker.give_up(0.9)
    first, second = (identity.region for identity in prepared.injection.identities)
    assert first is not None and second is not None and torch.allclose(second, 1 - first)
    assert 0.02 < float(first.mean()) < 0.5
    assert tracker.notes() == (
        "The face of person 2 was not found while the picture formed; the identity acted in what the others left of "
        "the picture, from late on.",
    )


# The rule, on made-up numbers.


@pytest.mark.parametrize(
    ("likeness", "found", "alike"),
    [
        ([[0.1, 0.7], [0.6, 0.0]], {0: 1, 1: 0}, {0, 1}),  # crossed
        ([[0.1, 0.3], [0.3, 0.0]], {0: 0, 1: 1}, set[int]()),  # nobody is known
        ([[0.6, 0.65], [0.65, 0.6]], {0: 0, 1: 1}, set[int]()),  # one person twice: nothing to choose by
        ([[0.1, 0.0], [0.6, 0.0]], {1: 0, 0: 1}, {1}),  # one is known, the other gets the rest
        ([[0.0, 0.0], [0.0, 0.6]], {0: 0, 1: 1}, set[int]()),  # known where the order puts them anyway
    ],
)
def test_likeness_counts_where_it_tells(likeness: list[list[float]], found: dict[int, int], alike: set[int]) -> None:
    assert recognise([LEFT, RIGHT], [0, 1], np.array(likeness, np.float32)) == (found, alike)


def test_faces_and_people_of_other_numbers() -> None:
    three = np.array([[0.0, 0.1, 0.7], [0.0, 0.0, 0.1]], np.float32)
    assert recognise([LEFT, MIDDLE, RIGHT], [0, 1], three)[0] == {0: 2, 1: 0}
    one = np.array([[0.0], [0.5]], np.float32)
    assert recognise([MIDDLE], [0, 1], one) == ({1: 0}, {1})
    assert recognise([MIDDLE], [0, 1], np.zeros((2, 1), np.float32)) == ({0: 0}, frozenset())
    assert recognise([], [0, 1], None) == ({}, frozenset())
    small = FacePosition(0.1, 0.3, 0.05)
    assert recognise([small, LEFT, RIGHT], [0, 1], None)[0] == {0: 1, 1: 2}, "the largest"
