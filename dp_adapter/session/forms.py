"""Which form of the identity attention is taken: what the blend mode allows, the memory holds, and is fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from dp_adapter.core.injection import Form, FormUsed, Identity, Injection
from dp_adapter.errors import SettingsError
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import SITES


def megabytes(form: FormUsed, identities: Sequence[Identity], bytes_per_number: int) -> float:
    """Memory in MB (2^20 bytes) that a form keeps for all identities, cond and uncond, over all sites."""
    return sum(_numbers(form, identity) for identity in identities) * bytes_per_number / 2**20


def _numbers(form: FormUsed, identity: Identity) -> int:
    """Per site and token: 2 C heads folded, C heads + I half-folded, 2 I plain; inner channels I are as many as C."""
    tokens = len(identity.tokens.cond) + len(identity.tokens.uncond) + 2 * identity.zero_tokens
    widths = [identity.adapter.site(index).width for index in range(len(identity.adapter.sites))]
    sdxl = len(widths) == SITES["sdxl"]
    numbers = 0
    for width in widths:
        heads = width // 64 if sdxl else 8  # SD1.5 has 8 everywhere, SDXL heads of 64 channels
        each = {"folded": 2 * width * heads, "half": width * heads + width, "plain": 2 * width}
        numbers += each[form] * tokens
    return numbers


def with_form(settings: Settings, injection: Injection, bytes_per_number: int) -> Injection:
    """The injection with the form that is computed.

    Args:
        bytes_per_number: of the numbers that the host computes with.

    Raises:
        SettingsError: a folded form was asked for, and the blend mode or the weights do not allow any.
    """
    wanted = cast(Form, settings.performance.form)
    if wanted in ("folded", "half") and not injection.foldable:
        raise SettingsError(
            "performance.form",
            f"'{wanted}' is not possible with blend '{injection.identities[0].mode}', text emphasis or trained text "
            "weights",
            "Use 'auto'.",
            "auto",
        )
    if wanted == "auto" and injection.foldable:
        limit = settings.performance.memory_mb
        fitting = (f for f in ORDER if megabytes(f, injection.identities, bytes_per_number) <= limit)
        wanted = next(fitting, "plain")
    return replace(injection, form=wanted)


ORDER: tuple[FormUsed, ...] = ("folded", "half")
