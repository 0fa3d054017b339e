"""Which form is picked: by tokens, by heads, and by the memory of all persons together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.injection import FormUsed, Identity, Injection
from dp_adapter.core.types import Tokens
from dp_adapter.hosts.attach.sites import Base, site_names
from dp_adapter.session.assembly.attention_form import choose_form, megabytes
from dp_adapter.settings import Settings
from tests import tiny


def someone(tokens: int, base: Base = "sd15", **changes: Any) -> Identity:
    both = torch.zeros(tokens, tiny.CONTEXT)
    return Identity(tiny.adapter(base), Tokens(both, both), **changes)


def form_of(*identities: Identity, bytes_per_number: int = 4, **performance: Any) -> FormUsed:
    asked = Settings.from_dict({"performance": performance}).performance
    return choose_form(Injection(identities), asked, bytes_per_number).form_used


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, "folded"), (4, "folded"), (8, "folded"), (16, "half"), (32, "half"), (257, "plain")]
)
def test_the_fastest_by_tokens(tokens: int, expected: FormUsed) -> None:
    assert form_of(someone(tokens)) == expected
    assert form_of(someone(tokens - 1, zero_tokens=1)) == expected
    assert form_of(someone(1), someone(tokens)) == expected


@pytest.mark.parametrize("form", ["folded", "half", "plain"])
def test_what_was_asked_for_is_taken(form: FormUsed) -> None:
    """Whatever its memory: the limit is for the choice."""
    assert form_of(someone(257), form=form, bytes_per_number=2**20) == form


def test_the_sum_of_all_persons_stays_under_the_limit() -> None:
    """Bytes as large as the tiny adapter needs for the least limit."""
    one = someone(4)
    mb = megabytes("folded", [one], 1)
    bytes_for_16 = int(16 / mb)
    assert form_of(one, bytes_per_number=bytes_for_16, memory_mb=16) == "folded"
    assert form_of(one, one, bytes_per_number=bytes_for_16, memory_mb=32) == "folded"
    assert form_of(one, one, bytes_per_number=bytes_for_16, memory_mb=16) == "plain", "half takes more than a half"
    assert form_of(one, one, bytes_per_number=bytes_for_16, memory_mb=32, form="half") == "half"
    assert form_of(one, bytes_per_number=int(bytes_for_16 * 1.5), memory_mb=16) == "half"
    assert form_of(one, bytes_per_number=bytes_for_16 * 100, memory_mb=16) == "plain"


WIDTHS = {"sd15": (320, 640, 1280, 1280), "sdxl": (320, 640, 1280)}  # by halvings
CONTEXT = {"sd15": 768, "sdxl": 2048}


def real_size(base: Base, tokens: int) -> Identity:
    """A person of real widths, without numbers."""
    with torch.device("meta"):
        sites = [SiteAdapter(CONTEXT[base], WIDTHS[base][name.halvings]) for name in site_names(base)]
        return Identity(Adapter(torch.nn.Identity(), sites), Tokens(*torch.zeros(2, tokens, CONTEXT[base])))


@pytest.mark.parametrize(
    ("base", "tokens", "form", "expected"),
    [
        ("sd15", 4, "folded", 3.05),
        ("sd15", 16, "folded", 12.2),
        ("sdxl", 4, "folded", 48.8),
        ("sdxl", 16, "folded", 195.3),
        ("sdxl", 16, "half", 102.7),
        ("sdxl", 16, "plain", 10.2),
    ],
)
def test_memory_at_real_size(base: Base, tokens: int, form: FormUsed, expected: float) -> None:
    """In half precision, both kinds of row: 3 and 13, 51 and 205 million bytes folded."""
    assert megabytes(form, [real_size(base, tokens)], 2) == pytest.approx(expected, rel=0.01)


def test_sdxl_has_more_heads() -> None:
    """So that four tokens are as wide there as ten in SD1.5."""
    assert form_of(real_size("sd15", 4)) == "folded"
    assert form_of(real_size("sdxl", 4)) == "half"
    assert form_of(real_size("sdxl", 16), *[real_size("sdxl", 16)] * 5, memory_mb=512) == "plain"
