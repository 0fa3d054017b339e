"""One generation's immutable state: everything the pathways need to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter, LowRank
from dp_adapter.core.regions import GATE_POWERS
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.text_side import TextIdentity
from dp_adapter.core.track import Track
from dp_adapter.core.types import BlendMode, Level, Tokens
from dp_adapter.errors import HostError

FormUsed = Literal["folded", "half", "plain"]
Form = Literal["auto"] | FormUsed

FOLDABLE: frozenset[BlendMode] = frozenset({"add"})


@dataclass(frozen=True)
class Identity:
    """One person.

    Attributes:
        weight: strength s of the identity pathway.
        mask: visually sensitive region [S, H, W] in [0, 1] in picture space, S = 1 or one per sample;
            None is the whole picture.
        track: a region that moves while the picture forms, in place of ``mask`` and ``free``.
        free: parts of the face that are left to the text [S, H, W]: 1 where they follow the text-only twin's
            self-attention entirely, if ``TextPathway.free`` says so (FreeCure, arXiv 2411.15277).
        text: what it changes in the text's context; None for nothing.
        zero_tokens: zero tokens appended to the identity's, so that attention may look away (PuLID).
    """

    adapter: Adapter
    tokens: Tokens
    weight: float = 1.0
    mask: Tensor | None = None
    mode: BlendMode = "add"
    zero_tokens: int = 0
    track: Track | None = None
    free: Tensor | None = None
    text: TextIdentity | None = None

    def __post_init__(self) -> None:
        """Raises HostError where tokens or blend mode are not those of the adapter."""
        site = self.adapter.site(0)
        if (width := self.tokens.cond.shape[-1]) != site.context:
            raise HostError(f"The identity tokens are {width} wide, the adapter takes {site.context}")
        if isinstance(site, GatedSiteAdapter) != (self.mode == "gated"):
            raise HostError(
                f"The blend mode '{self.mode}' does not work with this adapter",
                "FaceChain-FACT adapters take 'gated', all others any mode but that.",
            )

    @property
    def region(self) -> Tensor | None:
        """Where it acts now: [S, H, W], or None for the whole picture."""
        return self.mask if self.track is None else self.track.mask

    @property
    def freed(self) -> Tensor | None:
        """Which part is free now: [S, H, W], or None for no part."""
        return self.free if self.track is None else self.track.free

    @property
    def placed(self) -> bool:
        """Whether it acts or frees, or may come to do so, in a part of the picture only."""
        return self.track is not None or self.mask is not None or self.free is not None

    @property
    def visible(self) -> bool:
        """Whether the identity changes anything at all, now or later."""
        return self.weight != 0 and (self.track is not None or self.mask is None or bool((self.mask > 0).any()))


@dataclass(frozen=True)
class TextPathway:
    """Controls of the Textual-Consistency Adapter.

    Attributes:
        weight: strength of the trained low-rank weights, where the checkpoint has them.
        emphasis: a >= 0, raises the text's share outside the region (conditional rows).
        strict: carry text-only rows and take their self-attention features outside the region.
        free: carry them and take their self-attention features in what the identities leave free.
    """

    weight: float = 1.0
    emphasis: float = 0.0
    strict: bool = False
    free: bool = False


@dataclass(frozen=True)
class Injection:
    """What ``host.attach`` puts into a UNet.

    Attributes:
        lora: low-rank weights that came with a checkpoint, with their strength.
        form: ``folded``, ``half`` and ``plain`` compute the same; ``auto`` folds wherever that is possible.
    """

    identities: tuple[Identity, ...]
    schedule: Schedule = field(default_factory=Schedule)
    powers: Mapping[Level, float] = field(default_factory=lambda: GATE_POWERS)
    text: TextPathway = field(default_factory=TextPathway)
    lora: tuple[tuple[LowRank, float], ...] = ()
    form: Form = "auto"

    def __post_init__(self) -> None:
        """Raises HostError where families that act at different places are mixed."""
        if len({identity.mode == "gated" for identity in self.identities}) > 1:
            raise HostError(
                "FaceChain-FACT adapters cannot act beside adapters of other families",
                "Use one family for all identities.",
            )

    @property
    def active(self) -> bool:
        """False when nothing would change: the host then patches nothing, and the output is bit-equal."""
        return self.schedule.ever_active and any(identity.visible for identity in self.identities)

    def without_idle(self) -> Injection:
        """The same without identities that are switched off, so that they push no others aside where masks overlap."""
        return replace(self, identities=tuple(identity for identity in self.identities if identity.visible))

    @property
    def foldable(self) -> bool:
        """Whether the identities' term can be added behind the output projection."""
        trained = any(
            not isinstance(site, GatedSiteAdapter) and (site.text is not None or site.blending is not None)
            for identity in self.identities
            for site in map(identity.adapter.site, range(len(identity.adapter.sites)))
        )
        return not trained and not self.text.emphasis and all(i.mode in FOLDABLE for i in self.identities)

    @property
    def form_used(self) -> FormUsed:
        """The form that is computed."""
        if not self.foldable:
            return "plain"
        return "folded" if self.form == "auto" else self.form

    @property
    def folded(self) -> bool:
        """Whether the output projection, at least, is folded."""
        return self.form_used != "plain"

    @property
    def gated(self) -> bool:
        """Whether the identities act before the text attention (FaceChain-FACT)."""
        return any(identity.mode == "gated" for identity in self.identities)
