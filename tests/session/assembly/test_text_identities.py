"""Persons who act through a word of the prompt, from the request to the pictures, with a checkpoint without sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dp_adapter import generation
from dp_adapter.core.adapter import Adapter
from dp_adapter.core.text.text_side import PromptPerson, TextIdentity
from dp_adapter.core.types import Features, Tokens
from dp_adapter.errors import HostError, SettingsError
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
from dp_adapter.sampling import edit_prompts
from dp_adapter.session import Session
from dp_adapter.session.loaded_models import LoadedModels
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import RecipeOptions
from tests.session.conftest import SCENE, Request

WIDTH = 64  # of the tiny base's text


def fusion(_adapter: Adapter, features: Features, _options: RecipeOptions) -> TextIdentity:
    assert features.faceid is not None
    person = features.faceid[0, :WIDTH]

    def fuse(context: Tensor, positions: Sequence[int]) -> Tensor:
        changed = context.clone()
        changed[list(positions)] += 3 * person / person.norm() * context.norm(dim=1).mean()
        return changed

    return TextIdentity(fuse, 2, "key", trigger="img")


def nothing(_adapter: Adapter, _features: Features, _options: RecipeOptions) -> Tokens:
    return Tokens(torch.zeros(0, WIDTH), torch.zeros(0, WIDTH))


@pytest.fixture
def speaking(session: Session, adapter_file: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session whose model acts on the text side only."""
    known = session.checkpoint(adapter_file.name)
    made = replace(known, adapter=Adapter(nn.Identity(), []), recipe=nothing, fusion=fusion)
    monkeypatch.setattr(LoadedModels, "checkpoint", lambda _models, _name: made)  # type: ignore[reportUnknownLambdaType]
    return session


def test_the_request_says_lock_weight_and_words(speaking: Session, request_of: Request, portrait: Path) -> None:
    prepared = speaking.prepare(request_of(), SCENE)
    (identity,) = prepared.injection.identities
    assert identity.text is not None and (identity.text.lock, identity.text.weight) == ("key", 1.0)
    assert prepared.injection.active and not prepared.injection.folded and prepared.explanation.form == "plain"
    assert prepared.prompt_persons == (PromptPerson(0, "", 2, True, "img"),)
    (line,) = (line for line in prepared.explanation.lines() if line.startswith("Person 1"))
    assert line.endswith(
        "through the person word that is theirs in the prompt, 2 times in a row, weight 1, its keys locked"
    )
    named = [{"image": str(portrait), "identity": 1, "words": " woman in red "}, {"image": str(portrait)}]
    asked = request_of(*named, text_side={"lock": "others", "weight": 0.5})
    prepared = speaking.prepare(asked, SCENE)
    assert prepared.prompt_persons == (
        PromptPerson(0, "", 2, True, "img"),
        PromptPerson(1, "woman in red", 2, True, "img"),
    )
    texts = [one.text for one in prepared.injection.identities]
    assert [(one.lock, one.weight) for one in texts if one is not None] == [("others", 0.5)] * 2
    assert [one.person for one in prepared.injection.identities] == [0, 1]
    assert "through 'woman in red' in the prompt" in "".join(prepared.explanation.lines())


def test_weight_0_of_either_is_off(speaking: Session, request_of: Request) -> None:
    for off in ({"weight": 0}, {"text_side": {"weight": 0}}):
        prepared = speaking.prepare(request_of(**off), SCENE)
        assert not prepared.injection.active and prepared.prompt_persons == ()


def test_folded_is_refused(speaking: Session, request_of: Request) -> None:
    with pytest.raises(SettingsError, match="act through a word"):
        speaking.prepare(request_of(performance={"form": "folded"}), SCENE)


JOB = DiffusersJob("a photo of a man img in a garden", width=64, height=64, steps=2, sampler="ddim")


def test_pictures(speaking: Session, portrait: Path, tiny_folder: Path) -> None:
    pipeline = load_pipeline.load(tiny_folder, "cpu", "float32")
    settings = Settings.from_dict({"references": [{"image": str(portrait)}], "regions": [{"kind": "full"}]})
    prepared = speaking.prepare(settings, generation.scene_of(pipeline, JOB))
    job = edit_prompts(JOB, prepared)
    assert job.prompt == "a photo of a man man in a garden"

    def made(**changes: Any) -> Any:
        return generation.generate(speaking, pipeline, replace(settings, **changes), JOB).results[0].picture

    plain = load_pipeline.run(pipeline, job)[0]
    assert not np.array_equal(made(), plain)
    assert np.array_equal(made(weight=0.0), load_pipeline.run(pipeline, JOB)[0]), "nothing is done to the prompt either"
    with pytest.raises(HostError, match="no word for person 1"):
        generation.generate(
            speaking, pipeline, settings, replace(JOB, prompt="a garden"), lambda _done, _all: pytest.fail("it sampled")
        )


def test_the_word_before_the_trigger_in_a_picture(speaking: Session, portrait: Path, tiny_folder: Path) -> None:
    pipeline = load_pipeline.load(tiny_folder, "cpu", "float32")

    def made(prompt: str, words: str = "") -> Any:
        photo = {"image": str(portrait), "words": words}
        settings = Settings.from_dict({"references": [photo], "regions": [{"kind": "full"}]})
        return generation.generate(speaking, pipeline, settings, replace(JOB, prompt=prompt)).results[0].picture

    triggered = made("a man and a (barista) img")
    assert np.array_equal(triggered, made("a man and a (barista)", "barista"))
    assert not np.array_equal(triggered, made("a man and a (barista)"))
