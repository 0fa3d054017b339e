"""What is told of regions before a picture is made is what the generation begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dp_adapter.session import Session
from dp_adapter.session.regions.forecast import Forecast, forecast_regions
from dp_adapter.settings import Settings
from tests.session.conftest import SCENE, Request

BOX = {"kind": "box", "box": {"x1": 0.5}}


def told(session: Session, settings: Settings, scene: Any = SCENE) -> list[Forecast]:
    persons = range(max(1, settings.identities))
    return forecast_regions(settings, scene, session.photos, session.encoders, persons)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tracking": {"fallback": "none"}},
        {"tracking": {"fallback": "full"}},
        {"tracking": {"sources": ["init"]}},
        {"tracking": {"sources": ["preview"], "moments": []}},
        {"regions": [BOX]},
        {"regions": [{"kind": "auto"}, BOX]},
        {"regions": [{**BOX, "op": "subtract"}]},
    ],
)
def test_it_is_what_the_generation_begins_with(
    portrait_session: Session, request_of: Request, changes: dict[str, Any]
) -> None:
    settings = request_of(**changes)
    prepared = portrait_session.prepare(settings, SCENE)
    (identity,), (one,) = prepared.injection.identities, told(portrait_session, settings)
    begins = identity.mask if identity.track is None else identity.track.mask
    assert (one.mask is None) == (begins is None)
    assert one.mask is None or begins is None or torch.allclose(one.mask, begins)
    assert one.source == prepared.explanation.persons[0].region
    assert one.follows == (identity.track is not None)


@pytest.mark.parametrize(
    ("tracking", "coverage", "words"),
    [
        ({}, 0.0, "nowhere until then; the whole picture from 55 % on if nothing has shown it"),
        ({"fallback": "none"}, 0.0, "nowhere until then"),
        ({"fallback": "full"}, 1.0, "the whole picture until then"),
        ({"sources": ["init"]}, 1.0, "the whole picture, since nothing says where the face will be"),
    ],
)
def test_nothing_is_known_yet(portrait_session: Session, tracking: dict[str, Any], coverage: float, words: str) -> None:
    (one,) = told(portrait_session, Settings.from_dict({"tracking": tracking}))
    assert (one.coverage, one.known) == (coverage, False)
    assert one.source.endswith(words)


def test_a_person_without_a_region_is_told(portrait_session: Session, request_of: Request, portrait: Path) -> None:
    two = [{"image": str(portrait)}, {"image": str(portrait), "identity": 1}]

    def notes(**changes: Any) -> list[str]:
        made = portrait_session.prepare(request_of(*two, **changes), SCENE)
        return [note for note in made.explanation.notes if "has no region" in note]

    (note,) = notes(regions=[BOX, BOX])
    assert note.startswith("Person 2 has no region and acts in the face as soon as")
    assert notes() == [], "nobody has one"
    assert notes(regions=[BOX, {**BOX, "identity": 1}]) == []
    assert notes(regions=[BOX, {"kind": "auto", "identity": 1}]) == [], "an automatic one was asked for"
    (note,) = notes(regions=[BOX, {**BOX, "op": "subtract", "identity": 1}])
    assert note.startswith("Person 2 has no region"), "what is taken away is no place"


def test_words_share_without_regions(portrait_session: Session, portrait: Path) -> None:
    photos = [{"image": str(portrait), "identity": person} for person in (0, 1)]
    both = told(portrait_session, Settings.from_dict({"references": photos, "sharing": "words"}))
    assert [one.source for one in both] == ["the places where the words for them look"] * 2


def test_another_size_is_told_in_that_size(portrait_session: Session, request_of: Request) -> None:
    (one,) = told(portrait_session, request_of(), replace(SCENE, width=1024, height=768))
    assert one.mask is not None and one.mask.shape == (1, 768, 1024)
