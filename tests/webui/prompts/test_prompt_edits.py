"""A mode's words in a job's prompts and parameters; the host's restorers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dp_adapter.core.injection import Injection
from dp_adapter.core.text.text_side import PromptPerson
from dp_adapter.modes import TABLE, ModeFacts, resolve_mode
from dp_adapter.session import Explanation, Prepared
from dp_adapter.settings import Settings
from dp_adapter.webui.parameters import infotext
from dp_adapter.webui.prompts.prompt_edits import PromptEdits
from tests.webui import fake_webui

MADE = "a man, full body, [wide shot, head to toe, feet visible::0.6]"
NEGATIVE = "ugly, close-up, headshot, cropped, out of frame"
OFF = Prepared(Injection(()), Explanation(active=False))


FULL_BODY = Settings(mode="full_body")


def prepared(settings: Settings = FULL_BODY, spoken: tuple[PromptPerson, ...] = ()) -> Prepared:
    edit = resolve_mode(settings, TABLE[settings.mode], ModeFacts())
    return replace(OFF, mode=edit, prompt_persons=spoken)


def job(*, batch_size: Any = 2, **prompts: Any) -> Any:
    shown = {"all_prompts": ["a man"] * 2, "all_negative_prompts": ["ugly"] * 2}
    shown |= {"all_hr_prompts": None, "all_hr_negative_prompts": None}
    return SimpleNamespace(extra_generation_params={}, batch_size=batch_size, **{**shown, **prompts})


def test_words_come_into_every_prompt() -> None:
    p = job(all_hr_prompts=["a man", "a dog"], all_hr_negative_prompts=["", ""])
    prompts = p.all_prompts
    PromptEdits.put(p, (prepared(), prepared()))
    assert p.all_prompts == [MADE] * 2 and prompts == ["a man"] * 2
    assert p.all_negative_prompts == [NEGATIVE] * 2
    assert p.all_hr_prompts == [MADE, MADE.replace("man", "dog")]
    assert p.all_hr_negative_prompts == [NEGATIVE.removeprefix("ugly, ")] * 2


def test_each_batch_gives_its_own_prompts_back_once_it_has_them() -> None:
    p = job(batch_size=1, all_hr_prompts=["a man"] * 2, all_hr_negative_prompts=["ugly"] * 2)
    edits = PromptEdits.put(p, (prepared(), prepared()))
    edits.take_back(p, 0, acts=True)
    assert p.all_prompts == ["a man", MADE] == p.all_hr_prompts and p.all_negative_prompts == ["ugly", NEGATIVE]
    p.all_prompts[1] = "another script's"
    edits.take_back(p, 1, acts=True)
    assert p.all_prompts == ["a man", "another script's"] and p.all_hr_prompts == ["a man"] * 2
    assert p.all_negative_prompts == p.all_hr_negative_prompts == ["ugly"] * 2


def test_a_pass_in_which_nobody_acts_has_no_words() -> None:
    hires = {"all_hr_prompts": ["a man"] * 2, "all_hr_negative_prompts": ["ugly"] * 2}
    first_only, hires_only, none = (job(**hires) for _ in range(3))
    PromptEdits.put(first_only, (prepared(), OFF))
    assert first_only.all_prompts == [MADE] * 2 and first_only.all_hr_prompts == ["a man"] * 2
    PromptEdits.put(hires_only, (OFF, prepared()))
    assert hires_only.all_prompts == ["a man"] * 2 and hires_only.all_hr_prompts == [MADE] * 2
    assert "DP-Adapter result words" in hires_only.extra_generation_params
    PromptEdits.put(none, (OFF, OFF))
    assert vars(none) == vars(job(**hires))


def test_what_turns_out_not_to_act_is_sampled_without_words(shared: Any) -> None:
    networks = ModuleType("modules.extra_networks")
    vars(networks).update(parse_prompts=lambda texts: ([text.replace("<lora:x:1>", "") for text in texts], {}))  # type: ignore[reportUnknownLambdaType]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "modules.extra_networks", networks)
        patch.setattr(sys.modules["modules"], "extra_networks", networks, raising=False)
        p = job(all_prompts=["a man<lora:x:1>"] * 2)
        edits = PromptEdits.put(p, (prepared(), prepared()))
        p.prompts, p.negative_prompts = [MADE] * 2, [NEGATIVE] * 2
        edits.take_back(p, 0, acts=False)
    assert p.prompts == ["a man"] * 2 and p.negative_prompts == ["ugly"] * 2
    assert p.all_prompts == ["a man<lora:x:1>"] * 2 and p.extra_generation_params == {}


def test_what_was_added_is_in_the_parameters_and_never_read_back() -> None:
    p = job()
    PromptEdits.put(p, (prepared(), prepared()))
    written = p.extra_generation_params
    assert written == {
        "DP-Adapter result words": "full body, wide shot, head to toe, feet visible (up to 0.6)",
        "DP-Adapter result negative words": "close-up, headshot, cropped, out of frame",
    }
    pasted = infotext.read_parameters({**infotext.write_parameters(FULL_BODY, {}), **written})
    assert pasted is not None and pasted.settings == FULL_BODY and not pasted.notes


def test_a_persons_word_stands_as_often_as_it_has_to() -> None:
    people = prepared(Settings(), (PromptPerson(0, tokens=2, trigger="img"), PromptPerson(1, "dog")))
    own = ["a (man:1.2) img AND a dog"] * 2
    hires = {"all_hr_prompts": ["a man", "<lora:man:1>, a dog"], "all_hr_negative_prompts": ["", ""]}
    p = job(all_prompts=own, **hires)
    edits = PromptEdits.put(p, (people, people))
    assert p.all_prompts == ["a (man man:1.2) AND a dog"] * 2
    assert p.all_hr_prompts == ["a man man", "<lora:man:1>, a dog"]
    assert p.extra_generation_params == {"DP-Adapter result person words": "man x2 for person 1, dog for person 2"}
    again = job(all_prompts=p.all_prompts, **hires)
    PromptEdits.put(again, (people, people))
    assert again.all_prompts == p.all_prompts
    edits.take_back(p, 0, acts=True)
    assert p.all_prompts == own and p.all_hr_prompts == hires["all_hr_prompts"]


def test_a_portrait_and_a_host_without_prompts_are_left_alone() -> None:
    p, portrait = job(), prepared(Settings())
    PromptEdits.put(p, (portrait, portrait)).take_back(p, 0, acts=True)
    assert vars(p) == vars(job())
    bare = SimpleNamespace(extra_generation_params={}, batch_size=1)
    PromptEdits.put(bare, (portrait, prepared())).take_back(bare, 0, acts=True)
    assert not hasattr(bare, "all_prompts")


def test_unwanted_words_are_not_added() -> None:
    p, silent = job(), prepared(Settings(mode="full_body", mode_words=False))
    PromptEdits.put(p, (silent, silent))
    assert vars(p) == vars(job())


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
    from dp_adapter.webui.host.restorers import list_restorers

    assert list_restorers() == {}
    (tmp_path / "GFPGAN").mkdir()
    (tmp_path / "GFPGAN" / "GFPGANv1.4.pth").touch()
    (tmp_path / "GFPGAN" / "detection_Resnet50_Final.pth").touch()
    absent = Restorer("CodeFormer", tmp_path / "Codeformer")
    shared.face_restorers = [absent, Restorer("None", tmp_path), Restorer("GFPGAN", tmp_path / "GFPGAN")]
    found = list_restorers()
    assert {name: ready for name, (_, ready) in found.items()} == {"GFPGAN": True, "CodeFormer": False}
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (found["GFPGAN"][0](picture) == picture[::-1]).all()
