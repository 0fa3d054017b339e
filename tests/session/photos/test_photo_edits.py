"""Modes in a session: what they make of the injection, what is done to the photos, and what is told."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dp_adapter.errors import SettingsError
from dp_adapter.hosts.pipelines.diffusers_job import DiffusersJob
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.modes import TABLE, ModeWords
from dp_adapter.sampling import edit_prompts
from dp_adapter.session import Scene, Session
from dp_adapter.session.results import face_pass_plan
from tests.session.conftest import SCENE, Request

DOCS = Path(__file__).parents[3] / "docs"


def data_url(picture: Picture) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def old(portrait: Path) -> str:
    """The portrait in brown tones."""
    grey = load_picture(portrait) @ np.array([0.299, 0.587, 0.114]) / 255
    brown = np.clip(grey[..., None] * [1.07, 0.74, 0.43] + [0, 0.1, 0.1], 0, 1)
    return data_url((brown * 255).astype(np.uint8))


def test_a_mode_reaches_the_injection_and_is_told(portrait_session: Session, request_of: Request) -> None:
    prepared = portrait_session.prepare(request_of(mode="full_body"), SCENE)
    told = prepared.explanation
    assert prepared.injection.schedule.start == 0.3 and told.mode == "full_body" and told.span == (0.3, 1.0)
    assert ModeWords("full body") in told.words and told.mode_lines[0].startswith("Headshot to full body: ")
    assert set(told.mode_lines) < set(told.lines())
    assert json.loads(json.dumps(told.to_dict()))["words"][0]["text"] == "full body"
    assert prepared.mode is not None and prepared.mode.face_pass
    portrait = portrait_session.prepare(request_of(), SCENE)
    assert portrait.explanation.mode_lines == portrait.explanation.words == ()


def test_a_mode_of_ones_own(session: Session, models: Path, request_of: Request) -> None:
    folder = models / "dp_adapter" / "modes"
    folder.mkdir()
    (folder / "mine.json").write_text('{"start": 0.25, "words": [{"text": "on the moon"}]}')
    prepared = session.prepare(request_of(mode="custom:mine"), SCENE)
    assert prepared.injection.schedule.start == 0.25 and prepared.explanation.words == (ModeWords("on the moon"),)
    with pytest.raises(SettingsError, match="Did you mean 'custom:mine'"):
        session.prepare(request_of(mode="custom:mime"), SCENE)


@pytest.mark.parametrize("name", [*TABLE, "custom:noir"])
def test_no_mode_refuses_with_its_defaults(session: Session, models: Path, request_of: Request, name: str) -> None:
    (models / "dp_adapter" / "modes").mkdir()
    shutil.copy(DOCS / "modes" / "noir.json", models / "dp_adapter" / "modes")
    prepared = session.prepare(request_of(mode=name), SCENE)
    assert prepared.injection.active and prepared.explanation.mode == name


IDLE: dict[str, dict[str, Any]] = {
    "weight 0": {"weight": 0},
    "off": {"enabled": False},
    "nowhere": {
        "regions": [{"kind": "box", "box": {"x1": 0.5}}, {"kind": "full", "op": "subtract"}],
    },
    "never": {"curve": "0@0, 0@1"},
}


@pytest.mark.parametrize("fields", IDLE.values(), ids=IDLE)
def test_where_nobody_acts_a_mode_has_no_words(session: Session, request_of: Request, fields: dict[str, Any]) -> None:
    prepared = session.prepare(request_of(mode="full_body", **fields), SCENE)
    assert not prepared.injection.active and prepared.explanation.words == () and not prepared.prompt_persons
    job = DiffusersJob(prompt="a man", negative_prompt="ugly", width=128, height=128)
    assert edit_prompts(job, prepared) == job
    assert not face_pass_plan.is_wanted(request_of(mode="full_body", **fields), prepared.mode)


class Aged:
    """A pack with an opinion."""

    name = "fake"
    has_age_network = True

    def __init__(self, session: Session) -> None:
        self.detect = session.encoders.yunet.detect

    def age(self, _picture: object, _face: object) -> int:
        return 70


def test_the_age_in_the_photo_is_estimated_else_left_open(session: Session, request_of: Request) -> None:
    request = request_of(mode="age", target_age=30)
    open_still = session.prepare(request, SCENE)
    assert open_still.mode is not None and open_still.mode.settings.parts.skin == 0.575
    assert any("age in the photo is not known" in note for note in open_still.explanation.notes)
    session.encoders._packs["buffalo_l"] = Aged(session)  # type: ignore[assignment]
    edit = session.prepare(request, SCENE).mode
    assert edit is not None and edit.settings.reference_age == 70 and edit.settings.parts.skin == 0.5


def test_parts_left_to_the_text_are_free_on_request(
    portrait_session: Session, request_of: Request, portrait: Path
) -> None:
    fields: dict[str, Any] = {"mode": "expression", "expression": "sad", "tracking": {"sources": ["init"]}}
    scene = Scene("sd15", 128, 128, (load_picture(portrait),))
    bound = portrait_session.prepare(request_of(**fields), scene).injection
    (identity,) = bound.identities
    assert not bound.text.free and identity.free is not None and identity.mask is not None
    assert identity.free.shape == identity.mask.shape == (1, 128, 128)
    assert float(identity.free.max()) == pytest.approx(0.4, abs=0.02)  # what 0.6 leaves
    assert ((identity.free > 0) <= (identity.mask > 0)).all()
    freed = portrait_session.prepare(request_of(**fields, free_parts=True), scene)
    assert freed.injection.text.free and not any("No part" in note for note in freed.explanation.notes)
    two = Scene("sd15", 128, 128, (load_picture(portrait),) * 2)
    (both,) = portrait_session.prepare(request_of(**fields, free_parts=True), two).injection.identities
    assert both.free is not None and torch.equal(both.free[1:], identity.free)
    blind = portrait_session.prepare(request_of(**fields, free_parts=True), SCENE)
    assert any("No part of a face is free" in note for note in blind.explanation.notes)


def tokens(session: Session, request: Any) -> torch.Tensor:
    return session.prepare(request, SCENE).injection.identities[0].tokens.cond


def test_an_old_photo_is_retouched_and_a_clean_one_is_not(
    portrait_session: Session, request_of: Request, old: str
) -> None:
    session, fields = portrait_session, {"mode": "old_photo"}
    prepared = session.prepare(request_of(old, **fields), SCENE)
    assert any(note.endswith(": tint taken out.") for note in prepared.explanation.notes)
    off = session.prepare(request_of(old, **fields, retouch="off"), SCENE)
    assert not any("taken out" in note for note in off.explanation.notes)
    assert prepared.explanation.persons[0].photos == off.explanation.persons[0].photos  # the photo as it was given
    clean, old_one = tokens(session, request_of()), tokens(session, request_of(old, retouch="off"))
    assert torch.equal(tokens(session, request_of(**fields)), clean)
    assert torch.equal(tokens(session, request_of(old)), old_one)  # another mode does not ask for it
    retouched = tokens(session, request_of(old, retouch="on"))
    assert torch.equal(retouched, prepared.injection.identities[0].tokens.cond)
    assert (retouched - clean).norm() < (old_one - clean).norm()


def test_saved_identities_have_nothing_to_retouch(session: Session, request_of: Request) -> None:
    session.save_identity("Anna", request_of())
    notes = session.prepare(request_of("identity:Anna", mode="old_photo"), SCENE).explanation.notes
    assert any("'Anna' has no photos" in note for note in notes)


def test_restorers_are_the_hosts(models: Path, request_of: Request, old: str) -> None:
    calls: list[str] = []

    def darker(picture: Picture) -> Picture:
        calls.append("darker")
        return (picture // 2).astype(np.uint8)

    def same(picture: Picture) -> Picture:
        return picture

    here: dict[str, Any] = {"GFPGAN": (darker, False)}
    session = Session([models], True, restorers=lambda: here)

    def notes(**fields: Any) -> str:
        return " ".join(session.prepare(request_of(old, **fields), SCENE).explanation.notes)

    assert "restored" not in notes(mode="old_photo") and not calls  # its model would be downloaded
    here["CodeFormer"] = (same, True)
    assert "CodeFormer changed nothing" in notes(mode="old_photo")
    assert "restored by GFPGAN" in notes(restorer="GFPGAN") and calls == ["darker"]
    notes(restorer="GFPGAN")
    assert calls == ["darker"], "a photo is restored once"
    assert "CodeFormer" not in notes(mode="old_photo", restorer="off")
    with pytest.raises(SettingsError, match="comes with the WebUIs"):
        Session([models], True).prepare(request_of(old, restorer="GFPGAN"), SCENE)
