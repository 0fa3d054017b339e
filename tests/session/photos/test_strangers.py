"""A photo of somebody else among a person's photos; two photographs each of people in the public domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dp_adapter.session import Session
from dp_adapter.session.photos.strangers import Stranger, strangers


def found(session: Session, photos: Sequence[tuple[Path | str, int]], added: set[int]) -> list[Stranger]:
    references: list[dict[str, Any]] = [{"image": str(path), "identity": person} for path, person in photos]
    return strangers(session.photos, session.encoders.yunet, references, {}, added)


def test_another_photo_of_the_same_person_is_no_stranger(portrait_session: Session, people: list[Path]) -> None:
    for first, second in zip(people[0:12:2], people[1:12:2], strict=True):
        assert found(portrait_session, [(first, 0), (second, 0)], {1}) == []


def test_somebody_else_is_the_next_person_or_the_one_they_are_like(
    portrait_session: Session, people: list[Path]
) -> None:
    ada, ada2, bea, bea2 = people[:4]
    (one,) = found(portrait_session, [(ada, 0), (bea, 0)], {1})
    assert (one.photo, one.person, one.instead) == (1, 0, 1) and one.likeness < 0.3
    assert one.words.startswith("Photo 2 looks like somebody else than person 1:")
    (one,) = found(portrait_session, [(ada, 0), (people[4], 1), (bea, 2), (bea2, 0)], {3})
    assert (one.photo, one.instead) == (3, 2), "they are there already"
    (one,) = found(portrait_session, [(ada, 0), (bea, 0), (bea2, 1)], {1, 2})
    assert (one.photo, one.instead) == (1, 1), "said of a later one"
    both = found(portrait_session, [(ada, 0), (bea, 0), (ada2, 0), (bea2, 0)], {0, 1, 2, 3})
    assert [(one.photo, one.instead) for one in both] == [(1, 1), (3, 1)], "dropped together"


def test_what_cannot_be_compared_is_not_asked_about(
    portrait_session: Session, people: list[Path], faceless: Path
) -> None:
    assert found(portrait_session, [(people[0], 0)], {0}) == []
    assert found(portrait_session, [(faceless, 0), (people[0], 0)], {1}) == []
    assert found(portrait_session, [(people[0], 0), (faceless, 0), ("identity:Nobody", 0)], {1, 2}) == []
    assert found(portrait_session, [(people[0], 0), (people[2], 0)], set()) == [], "it was there already"


@pytest.mark.parametrize("room", [True, False])
def test_there_may_be_no_room_for_another_person(portrait_session: Session, people: list[Path], room: bool) -> None:
    crowd = [(people[0], person) for person in range(7 if room else 8)]
    (one,) = found(portrait_session, [*crowd, (people[2], 0)], {len(crowd)})
    assert one.instead == (7 if room else None)
