"""A job in which a person acts through a word of the prompt, through the script's hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.core.types import Tokens
from dp_adapter.session.loaded_models import LoadedModels
from tests import tiny
from tests.hosts.protocol import same_state, state_of
from tests.webui.job import test_job as running
from tests.webui.prompts import test_word_positions as parsing

host = running.host  # fixture


@pytest.mark.parametrize(
    ("prompt", "left", "positions", "word"),
    [
        ("a man img of red", "a man man of red", [2, 3], "man"),
        ("a man and a woman img", "a man and a woman woman", [5, 6], "woman"),
        ("a man and a woman img", "a man and a woman", [5], "woman"),
        ("a man and a red img", "a man and a red red", [5, 6], "red"),
    ],
)
def test_a_person_acts_through_a_word(
    host: Any,
    person: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    left: str,
    positions: list[int],
    word: str,
) -> None:
    """The word comes into the prompts as often as it must, is found there, and without it the job ends in words."""
    times = len(positions)

    def fusion(_adapter: Adapter, _features: Any, _options: Any) -> TextIdentity:
        def fuse(context: Tensor, given: Sequence[int]) -> Tensor:
            assert list(given) == positions
            changed = context.clone()
            changed[list(given)] += 2
            return changed

        return TextIdentity(fuse, times, trigger="img")

    nobody = Tokens(torch.zeros(0, tiny.CONTEXT), torch.zeros(0, tiny.CONTEXT))
    read = LoadedModels.checkpoint
    changes: dict[str, Any] = {"adapter": Adapter(torch.nn.Identity(), []), "recipe": lambda *_: nobody}  # type: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(
        LoadedModels,
        "checkpoint",
        lambda self, name: replace(read(self, name), fusion=fusion, **changes),  # type: ignore[reportUnknownLambdaType]
    )
    host.model.cond_stage_model = parsing.Reader()
    host.fake["modules"].prompt_parser = SimpleNamespace(
        get_multicond_prompt_list=parsing.get_multicond_prompt_list,
        get_learned_conditioning_prompt_schedules=parsing.get_learned_conditioning_prompt_schedules,
    )
    host.fake["modules.shared"].opts.data["use_old_scheduling"] = False
    before, plain = state_of(host.unet.module), host.job().run()

    def made(prompt: str) -> Any:
        p = host.job(person, all_prompts=[prompt], all_negative_prompts=[""], firstpass_steps=2)
        return p, p.run()

    p, pictures = made(prompt)
    assert not p.reported and p.sampled[0]["prompts"] == [left] and p.all_prompts == [prompt]
    told = p.extra_generation_params["DP-Adapter result person words"]
    assert told.startswith(f"{word}{' x2' if times == 2 else ''} for person 1")
    assert running.largest(pictures, plain) > 1e-3 and same_state(before, state_of(host.unet.module))
    with pytest.raises(Exception, match="no word for person 1"):
        made("a tree")
    assert same_state(before, state_of(host.unet.module))
