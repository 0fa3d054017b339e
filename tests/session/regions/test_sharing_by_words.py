"""Persons who share a picture by their words: who is meant, how it is read, and where they act then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.errors import SettingsError
from dp_adapter.hosts.prompts.clip_tokenizer import clip_tokenizer
from dp_adapter.session import Session
from tests import tiny
from tests.session.conftest import SCENE, Request
from tests.session.test_families import put

Texts = list[Sequence[str]]


@pytest.fixture
def asked() -> Texts:
    return []


@pytest.fixture
def scene(asked: Texts) -> Any:
    """A host with a causal text encoder: each token's row depends on all tokens up to it."""
    tokenizer = clip_tokenizer()

    def encode(texts: Sequence[str]) -> Tensor:
        asked.append(texts)
        ids = torch.tensor(tokenizer(list(texts), padding="max_length", max_length=77).input_ids)
        table = torch.randn(49408, tiny.CONTEXT, generator=torch.Generator().manual_seed(1))
        return table[ids].cumsum(1)

    return replace(SCENE, encode=encode, words=("woman", "man", "child"))


def two(portrait: Path, *words: str) -> list[dict[str, Any]]:
    return [{"image": str(portrait), "identity": n, "words": words[n]} for n in range(len(words))]


def test_words_of_the_prompt_in_order(
    portrait_session: Session, request_of: Request, portrait: Path, scene: Any, asked: Texts
) -> None:
    prepared = portrait_session.prepare(request_of(*two(portrait, "", ""), sharing="words"), scene)
    injection = prepared.injection
    assert injection.sharing == "words" and injection.by_words and not injection.folded
    assert [person.region for person in prepared.explanation.persons] == [
        "the attention of 'woman'",
        "the attention of 'man'",
    ]
    assert asked == [("woman", "woman a", ""), ("man", "man a", "")]
    first, second = (identity.entity for identity in injection.identities)
    assert first is not None and second is not None and first.tokens == second.tokens == 1
    assert torch.equal(first.uncond, second.uncond) and not torch.equal(first.cond, second.cond)
    assert all(identity.region is None for identity in injection.identities), "no masks are needed"
    assert prepared.tracker is None and prepared.explanation.span[0] == 0.15


def test_words_are_counted_as_the_text_encoder_reads_them(
    portrait_session: Session, request_of: Request, portrait: Path, scene: Any
) -> None:
    settings = request_of(*two(portrait, "woman in red", "unforgettable astronaut"), sharing="words")
    counts = [one.entity.tokens for one in portrait_session.prepare(settings, scene).injection.identities if one.entity]
    lengths = clip_tokenizer()(["woman in red", "unforgettable astronaut"], add_special_tokens=False).input_ids
    assert counts == [len(one) for one in lengths]


def test_given_words_leave_the_others_to_those_without(
    portrait_session: Session, request_of: Request, portrait: Path, scene: Any
) -> None:
    settings = request_of(*two(portrait, "", "woman in red", ""), sharing="words")
    told = [person.region for person in portrait_session.prepare(settings, scene).explanation.persons]
    assert told == [f"the attention of '{words}'" for words in ("man", "woman in red", "child")]


def test_a_region_of_ones_own_multiplies(
    portrait_session: Session, request_of: Request, portrait: Path, scene: Any
) -> None:
    box = {"kind": "box", "box": {"x1": 0.5}, "identity": 1}
    settings = request_of(*two(portrait, "", ""), sharing="words", regions=[box])
    prepared = portrait_session.prepare(settings, scene)
    whole, half = (identity.region for identity in prepared.injection.identities)
    assert whole is None and half is not None and half[..., :64].eq(1).all() and half[..., 64:].eq(0).all()
    assert prepared.explanation.persons[1].region == "a box, by the attention of 'man'"
    left_out = request_of(*two(portrait, "", ""), sharing="words", regions=[box | {"op": "subtract"}])
    _, rest = (one.region for one in portrait_session.prepare(left_out, scene).injection.identities)
    assert rest is not None and rest[..., :64].eq(0).all() and rest[..., 64:].eq(1).all()
    painted = replace(scene, inpaint=np.eye(128, dtype=np.float32))
    prepared = portrait_session.prepare(request_of(*two(portrait, "", ""), sharing="words"), painted)
    assert [person.region for person in prepared.explanation.persons] == [
        "the inpaint mask, by the attention of 'woman'",
        "the inpaint mask, by the attention of 'man'",
    ]


def test_one_person_has_a_region(portrait_session: Session, request_of: Request, scene: Any, asked: Texts) -> None:
    prepared = portrait_session.prepare(request_of(sharing="words"), scene)
    assert prepared.injection.sharing == "regions" and prepared.injection.folded and not asked


@pytest.mark.parametrize(
    ("changes", "words", "field", "problem"),
    [
        ({"encode": None}, ("", ""), "sharing", "does not encode texts"),
        ({"words": ("man",)}, ("", ""), r"references\[1\].words", "nothing in the prompt says who person 2 is"),
        ({"words": ("man",)}, ("man", ""), r"references\[1\].words", "nothing in the prompt"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_words(
    portrait_session: Session,
    request_of: Request,
    portrait: Path,
    scene: Any,
    changes: dict[str, Any],
    words: tuple[str, str],
    field: str,
    problem: str,
) -> None:
    settings = request_of(*two(portrait, *words), sharing="words")
    with pytest.raises(SettingsError, match=f"{field}: .*{problem}"):
        portrait_session.prepare(settings, replace(scene, **changes))


def test_words_that_are_none_are_refused(
    portrait_session: Session, request_of: Request, portrait: Path, scene: Any
) -> None:
    """As brackets of the WebUIs, which set the emphasis of nothing."""

    def deaf(texts: Sequence[str]) -> Tensor:
        return scene.encode([text.replace("()", "") for text in texts])

    settings = request_of(*two(portrait, "woman", "()"), sharing="words")
    with pytest.raises(SettingsError, match=r"references\[1\].words: .*reads nothing in '\(\)'"):
        portrait_session.prepare(settings, replace(scene, encode=deaf))


def test_the_same_words_are_told(portrait_session: Session, request_of: Request, portrait: Path, scene: Any) -> None:
    prepared = portrait_session.prepare(request_of(*two(portrait, "Twin", "twin"), sharing="words"), scene)
    assert any("Person 1 and person 2 have the same words ('twin')" in note for note in prepared.explanation.notes)


def test_mip_adapter_shares_by_words_unless_told_otherwise(
    root: Path, request_of: Request, portrait: Path, scene: Any
) -> None:
    put(root, "mip-adapter")
    session = Session([root], True)
    photos = two(portrait, "", "")
    prepared = session.prepare(request_of(*photos), scene)
    assert prepared.explanation.family == "mip-adapter" and prepared.injection.by_words
    assert prepared.explanation.span[0] == 0.0, "it was trained so"
    assert all(len(identity.tokens.cond) == 4 for identity in prepared.injection.identities)
    placed = session.prepare(request_of(*photos, sharing="regions", tracking={"sources": []}), scene)
    assert placed.injection.sharing == "regions" and not placed.injection.folded
    alone = session.prepare(request_of(), replace(scene, encode=None))
    assert alone.injection.sharing == "regions"
    several = [photo | {"identity": 0} for photo in photos]
    assert len(session.prepare(request_of(*several), scene).injection.identities[0].tokens.cond) == 4
