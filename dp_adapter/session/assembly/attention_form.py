"""Chooses the form of the identity attention: what the blend mode allows, the memory holds, and is fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from dp_adapter.core.injection import Form, FormUsed, Identity, Injection
from dp_adapter.errors import SettingsError
from dp_adapter.settings import Performance
from dp_adapter.weights.checkpoint import SITES

_FOLDED_WIDTH = 64  # heads * T up to which the folded form was fastest, and tokens up to which the half-folded one was
_HALF_TOKENS = 32  # (benchmarks/forms.py; docs/performance.md has the figures)


def megabytes(form: FormUsed, identities: Sequence[Identity], bytes_per_number: int) -> float:
    """Memory in MB (2^20 bytes) that a form keeps for all identities, cond and uncond, over all sites."""
    return sum(_numbers(form, identity) for identity in identities) * bytes_per_number / 2**20


def _numbers(form: FormUsed, identity: Identity) -> int:
    """Per site and token: 2 C heads folded, C heads + I half-folded, 2 I plain; inner channels I are as many as C."""
    tokens = len(identity.tokens.cond) + len(identity.tokens.uncond) + 2 * identity.zero_tokens
    numbers = 0
    for width, heads in _sites(identity):
        each = {"folded": 2 * width * heads, "half": width * heads + width, "plain": 2 * width}
        numbers += each[form] * tokens
    return numbers


def choose_form(injection: Injection, asked: Performance, bytes_per_number: int) -> Injection:
    """The injection with the form that is computed.

    Args:
        bytes_per_number: of the numbers that the host computes with.

    Raises:
        SettingsError: a folded form was asked for, and the blend mode or the weights do not allow any.
    """
    wanted = cast(Form, asked.form)
    if wanted in ("folded", "half") and not injection.foldable:
        raise SettingsError(
            "performance.form",
            f"'{wanted}' is not possible with blend '{injection.identities[0].mode}', text emphasis, trained text "
            "weights or identities that act through a word",
            "Use 'auto'.",
            "auto",
        )
    if wanted == "auto" and injection.foldable:
        limit = asked.memory_mb
        fitting = [
            f for f in _by_speed(injection.identities) if megabytes(f, injection.identities, bytes_per_number) <= limit
        ]
        wanted = fitting[0] if fitting else "plain"
    return replace(injection, form=wanted)


def _by_speed(identities: Sequence[Identity]) -> tuple[FormUsed, ...]:
    """The fastest form for so many tokens, and those that take less memory."""
    tokens = max(len(identity.tokens.cond) + identity.zero_tokens for identity in identities)
    heads = max((heads for _, heads in _sites(identities[0])), default=0)  # none where all is on the text side
    if heads * tokens <= _FOLDED_WIDTH:
        return ("folded", "half", "plain")
    return ("half", "plain") if tokens <= _HALF_TOKENS else ("plain",)


def _sites(identity: Identity) -> list[tuple[int, int]]:
    """Width C and heads of every site: SD1.5 has 8 heads everywhere, SDXL heads of 64 channels."""
    widths = [identity.adapter.site(index).width for index in range(len(identity.adapter.sites))]
    sdxl = len(widths) == SITES["sdxl"]
    return [(width, -(-width // 64) if sdxl else 8) for width in widths]
