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
from dp_adapter.core.text_side import TextIdentity
from dp_adapter.core.types import Tokens
from dp_adapter.session import Session
from tests import tiny
from tests.hosts.protocol import same_state, state_of
from tests.webui import test_prompt_words as parsing
from tests.webui import test_run as running

adapter_path, host, person = running.adapter_path, running.host, running.person  # fixtures


def test_a_person_acts_through_a_word(host: Any, person: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The word comes into the prompts twice, is found there, and without it the job ends in words."""

    def fusion(_adapter: Adapter, _features: Any, _options: Any) -> TextIdentity:
        def fuse(context: Tensor, positions: Sequence[int]) -> Tensor:
            assert list(positions) == [2, 3], "of 'a man man of red'"
            changed = context.clone()
            changed[list(positions)] += 2
            return changed

        return TextIdentity(fuse, 2, trigger="img")

    nobody = Tokens(torch.zeros(0, tiny.CONTEXT), torch.zeros(0, tiny.CONTEXT))
    read = Session.checkpoint
    changes: dict[str, Any] = {"adapter": Adapter(torch.nn.Identity(), []), "recipe": lambda *_: nobody}  # type: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(
        Session,
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

    p, pictures = made("a man img of red")
    assert not p.reported and p.sampled[0]["prompts"] == ["a man man of red"] and p.all_prompts == ["a man img of red"]
    assert p.extra_generation_params["DP-Adapter result person words"] == "man x2 for person 0"
    assert running.largest(pictures, plain) > 1e-3 and same_state(before, state_of(host.unet.module))
    with pytest.raises(Exception, match="no word for person 0"):
        made("a tree")
    assert same_state(before, state_of(host.unet.module))
