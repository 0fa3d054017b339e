"""Which form of the identity attention is taken: what fits the blend mode and the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from dp_adapter.core.injection import FOLDABLE, Form, Identity, Injection
from dp_adapter.core.types import BlendMode
from dp_adapter.errors import SettingsError
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import SITES


def form_of(settings: Settings, mode: BlendMode, identities: Sequence[Identity]) -> Form:
    """Folded weights take 2 C heads T numbers per site and kind of row; beyond the limit the plain form is taken."""
    form = cast(Form, settings.performance.form)
    if form != "auto" or mode not in FOLDABLE:
        return form
    numbers = sum(folded_numbers(identity) for identity in identities)
    return "plain" if numbers * 4 > settings.performance.memory_mb * 2**20 else "auto"


def folded_numbers(identity: Identity) -> int:
    """Numbers that the folded form keeps for one identity, cond and uncond, over all sites."""
    sites = [identity.adapter.site(index) for index in range(len(identity.adapter.sites))]
    sdxl = len(sites) == SITES["sdxl"]
    widths = [site.width for site in sites]
    # SD1.5 has 8 heads everywhere, SDXL heads of 64 channels.
    return sum(2 * 2 * width * (width // 64 if sdxl else 8) * len(identity.tokens.cond) for width in widths)


def require_foldable(settings: Settings, injection: Injection) -> None:
    if settings.performance.form == "folded" and not injection.folded:
        raise SettingsError(
            "performance.form",
            f"'folded' is not possible with blend '{injection.identities[0].mode}', text emphasis, trained text "
            "weights or identities that act through a word",
            "Use 'auto'.",
            "auto",
        )
