"""A mode's words in a job's prompts and parameters; the host's restorers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dp_adapter.core.text_side import Spoken
from dp_adapter.edits import TABLE, Facts, resolve
from dp_adapter.settings import Settings
from dp_adapter.webui import infotext, words
from tests.webui import fake_webui

SETTINGS = Settings(mode="full_body")
EDIT = resolve(SETTINGS, TABLE["full_body"], Facts())
MADE = "a man, full body, [wide shot, head to toe, feet visible::0.6]"


def job(**prompts: Any) -> Any:
    shown = {"all_prompts": ["a man"] * 2, "all_negative_prompts": ["ugly"] * 2, "main_prompt": "a man"}
    shown |= {"main_negative_prompt": "ugly", "all_hr_prompts": None, "all_hr_negative_prompts": None}
    return SimpleNamespace(extra_generation_params={}, **{**shown, **prompts})


def test_words_come_into_every_prompt() -> None:
    hires = {"all_hr_prompts": ["a man", "a dog"], "all_hr_negative_prompts": ["", ""]}
    p = job(**hires)
    prompts = p.all_prompts
    words.add(p, EDIT)
    assert p.all_prompts == [MADE] * 2 and p.main_prompt == MADE and prompts == ["a man"] * 2
    negative = "ugly, close-up, headshot, cropped, out of frame"
    assert p.all_negative_prompts == [negative] * 2 and p.main_negative_prompt == negative
    assert p.all_hr_prompts == [MADE, MADE.replace("man", "dog")]
    assert p.all_hr_negative_prompts == [negative.removeprefix("ugly, ")] * 2


def test_what_was_added_is_in_the_parameters_and_never_read_back() -> None:
    p = job()
    words.add(p, EDIT)
    written = p.extra_generation_params
    assert written["DP-Adapter result words"] == "full body, wide shot, head to toe, feet visible (up to 0.6)"
    assert written["DP-Adapter result negative words"].startswith("close-up")
    assert written["DP-Adapter result mode"].startswith("Headshot to full body: ")
    params = {**infotext.parameters(SETTINGS, {}), **written}
    pasted = infotext.read(params)
    assert pasted is not None and pasted.settings == SETTINGS and not pasted.notes


def test_pasting_and_generating_again_doubles_nothing() -> None:
    first = job()
    words.add(first, EDIT)
    again = job(
        all_prompts=first.all_prompts, all_negative_prompts=first.all_negative_prompts, main_prompt=first.main_prompt
    )
    words.add(again, EDIT)
    assert again.all_prompts == first.all_prompts and again.all_negative_prompts == first.all_negative_prompts
    assert again.extra_generation_params == first.extra_generation_params


def test_a_persons_word_stands_as_often_as_it_has_to() -> None:
    people = (Spoken(0, tokens=2, trigger="img"), Spoken(1, "dog"))
    p = job(all_prompts=["a (man:1.2) img AND a dog"] * 2, all_hr_prompts=["a man", "<lora:man:1>, a dog"])
    words.speak(p, people)
    assert p.all_prompts == ["a (man man:1.2) AND a dog"] * 2
    assert p.all_hr_prompts == ["a man man", "<lora:man:1>, a dog"] and p.main_prompt == "a man man"
    assert p.extra_generation_params == {"DP-Adapter result person words": "man x2 for person 1, dog for person 2"}
    again = job(all_prompts=p.all_prompts, all_hr_prompts=p.all_hr_prompts, main_prompt=p.main_prompt)
    words.speak(again, people)
    assert again.all_prompts == p.all_prompts and again.main_prompt == p.main_prompt
    untouched = job()
    words.speak(untouched, ())
    assert vars(untouched) == vars(job())


def test_a_portrait_and_a_host_without_prompts_are_left_alone() -> None:
    p = job()
    words.add(p, resolve(Settings(), TABLE["portrait"], Facts()))
    words.add(p, None)
    assert vars(p) == vars(job())
    bare = SimpleNamespace(extra_generation_params={})
    words.add(bare, EDIT)
    assert set(vars(bare)) == {"extra_generation_params"}


def test_unwanted_words_are_not_added_but_the_mode_is_told() -> None:
    p = job()
    words.add(p, resolve(SETTINGS.replace(mode_words=False), TABLE["full_body"], Facts()))
    assert p.all_prompts == ["a man"] * 2 and set(p.extra_generation_params) == {"DP-Adapter result mode"}


class Restorer:
    """As the hosts': listed whether or not its model is there."""

    def __init__(self, name: str, model_path: Path) -> None:
        self._name, self.model_path = name, str(model_path)

    def name(self) -> str:
        return self._name

    def restore(self, picture: Any) -> Any:
        return picture[::-1]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Any]:
    with fake_webui.installed(tmp_path) as fake:
        yield fake["modules.shared"]


def test_restorers_of_the_host(shared: Any, tmp_path: Path) -> None:
    from dp_adapter.webui.restorers import restorers

    assert restorers() == {}
    (tmp_path / "GFPGAN").mkdir()
    (tmp_path / "GFPGAN" / "GFPGANv1.4.pth").touch()
    (tmp_path / "GFPGAN" / "detection_Resnet50_Final.pth").touch()
    absent = Restorer("CodeFormer", tmp_path / "Codeformer")
    shared.face_restorers = [absent, Restorer("None", tmp_path), Restorer("GFPGAN", tmp_path / "GFPGAN")]
    found = restorers()
    assert {name: ready for name, (_, ready) in found.items()} == {"GFPGAN": True, "CodeFormer": False}
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (found["GFPGAN"][0](picture) == picture[::-1]).all()
