"""What an injection says about itself, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.types import Tokens
from dp_adapter.errors import HostError
from tests import tiny


@lru_cache
def adapter(text: bool = False) -> Adapter:
    return tiny.adapter("sd15", text=text)


def identity(**changes: Any) -> Identity:
    return replace(Identity(adapter(), tiny.tokens()), **changes)


@pytest.mark.parametrize(
    ("changes", "visible"),
    [
        ({}, True),
        ({"weight": 0.0}, False),
        ({"weight": -0.5}, True),
        ({"mask": torch.zeros(2, 8, 8)}, False),
        ({"mask": torch.eye(8)[None]}, True),
    ],
)
def test_visible(changes: dict[str, Any], visible: bool) -> None:
    one = identity(**changes)
    assert one.visible == visible
    injection = Injection((one, identity()))
    assert injection.active
    assert len(injection.drop_idle().identities) == 1 + visible
    assert Injection((one,)).active == visible


def test_an_empty_span_is_not_active() -> None:
    assert not Injection((identity(),), schedule=Schedule(0.6, 0.5)).active
    assert not Injection(()).active


@pytest.mark.parametrize(
    ("injection", "form"),
    [
        (Injection((identity(),)), "folded"),
        (Injection((identity(),), form="half"), "half"),
        (Injection((identity(),), form="plain"), "plain"),
        (Injection((identity(mode="norm"),)), "plain"),
        (Injection((identity(mode="norm"),), form="folded"), "plain"),
        (Injection((identity(mode="norm"),), form="half"), "plain"),
        (Injection((identity(), identity(mode="orthogonal"))), "plain"),
        (Injection((identity(),), text=TextPathway(emphasis=0.1)), "plain"),
        (Injection((identity(),), text=TextPathway(strict=True)), "folded"),
        (Injection((replace(identity(), adapter=adapter(text=True)),)), "plain"),
    ],
)
def test_the_form_that_is_computed(injection: Injection, form: str) -> None:
    assert injection.form_used == form
    assert injection.folded == (form != "plain")


def test_tokens_of_another_width_are_refused() -> None:
    with pytest.raises(HostError, match="tokens are 64 wide, the adapter takes 48"):
        identity(tokens=Tokens(torch.zeros(4, 64), torch.zeros(4, 64)))


def test_a_blend_mode_of_another_family_is_refused() -> None:
    with pytest.raises(HostError, match="blend mode 'gated'"):
        identity(mode="gated")
    with pytest.raises(HostError, match="blend mode 'text_query'"):
        identity(mode="text_query")
    for adapter in (tiny.gated_adapter(), tiny.text_query_adapter("sd15")):
        with pytest.raises(HostError, match="blend mode 'add'"):
            Identity(adapter, tiny.tokens())


def test_families_that_act_at_different_places_are_not_mixed() -> None:
    gated = Identity(tiny.gated_adapter(), tiny.tokens(), mode="gated")
    for pair in ((gated, identity()), (identity(), gated)):
        with pytest.raises(HostError, match="FaceChain-FACT"):
            Injection(pair)
