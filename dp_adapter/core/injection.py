"""One generation's immutable state: everything the pathways need to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter, LowRank, SiteAdapter, TextQuerySiteAdapter
from dp_adapter.core.reference_photo import ReferencePhoto
from dp_adapter.core.regions.region_masks import GATE_POWERS
from dp_adapter.core.regions.track import Track
from dp_adapter.core.res_adapter import SizeCompanion
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.text.sharing_by_words import Entity, Sharing
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.core.types import BlendMode, Level, Tokens
from dp_adapter.errors import HostError

FormUsed = Literal["folded", "half", "plain"]
Form = Literal["auto"] | FormUsed

FOLDABLE: frozenset[BlendMode] = frozenset({"add"})
REQUIRED_MODES: frozenset[BlendMode] = frozenset({"gated", "text_query"})
"""Blend modes that only the adapters trained for them take, and that these cannot do without."""


def required_mode(site: SiteAdapter | GatedSiteAdapter) -> BlendMode | None:
    """The only blend mode that a site's weights fit; None where any other does."""
    if isinstance(site, GatedSiteAdapter):
        return "gated"
    return "text_query" if isinstance(site, TextQuerySiteAdapter) else None


@dataclass(frozen=True)
class Identity:
    """What acts for one person: an adapter with the person's tokens.

    Attributes:
        weight: strength s of the identity pathway.
        mask: visually sensitive region [S, H, W] in [0, 1] in picture space, S = 1 or one per sample;
            None is the whole picture.
        track: a region that moves while the picture forms, in place of ``mask`` and ``free``.
        free: parts of the face that are left to the text [S, H, W]: 1 where they follow the text-only twin's
            self-attention entirely, if ``TextPathway.free`` says so (FreeCure, arXiv 2411.15277).
        text: what it changes in the text's context; None for nothing.
        zero_tokens: zero tokens appended to the identity's, so that attention may look away (PuLID).
        entity: the person's words, by which several share the picture; None where they do not.
        person: number of the person in the request, by which their words are asked for.
        reference: the photo that the picture's self-attention may look at in their region; None for none.
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
    entity: Entity | None = None
    person: int = 0
    reference: ReferencePhoto | None = None

    def __post_init__(self) -> None:
        """Raises HostError where tokens or blend mode are not those of the adapter."""
        if self.text is not None and self.mode == "gated":
            raise HostError(
                "FaceChain-FACT adapters act before the text attention, so no identity acts through a word beside them",
                "Use another family, or leave the identity that acts through the words out.",
            )
        if not self.adapter.sites:  # it acts on the text side only
            return
        site = self.adapter.site(0)
        if (width := self.tokens.cond.shape[-1]) != site.context:
            raise HostError(f"The identity tokens are {width} wide, the adapter takes {site.context}")
        if (own := required_mode(site)) != self.mode and (own or self.mode in REQUIRED_MODES):
            raise HostError(
                f"The blend mode '{self.mode}' does not work with this adapter",
                "FaceChain-FACT adapters take 'gated', W+ adapters 'text_query', all others any mode but these.",
            )

    @property
    def on_text(self) -> TextIdentity | None:
        """What it changes in the text's context; None where that is nothing."""
        return None if self.text is None or self.text.weight == 0 else self.text

    @property
    def region(self) -> Tensor | None:
        """Where it acts now: [S, H, W], or None for the whole picture."""
        return self.mask if self.track is None else self.track.mask

    @property
    def free_region(self) -> Tensor | None:
        """Where the text is left free now: [S, H, W]; None for nowhere."""
        return self.free if self.track is None else self.track.free

    @property
    def is_regional(self) -> bool:
        """Whether it acts or frees, or may come to do so, in a part of the picture only."""
        return self.track is not None or self.mask is not None or self.free is not None

    @property
    def uses_photo(self) -> bool:
        """Whether the person's photo is ever attended to."""
        return self.reference is not None and self.reference.ever_active

    @property
    def visible(self) -> bool:
        """Whether the identity changes anything at all, now or later."""
        acts = self.on_text is not None or (self.weight != 0 and len(self.adapter.sites) > 0) or self.uses_photo
        return acts and (self.track is not None or self.mask is None or bool((self.mask > 0).any()))


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
        companion: fits the base model to another size while an identity acts, with its strength.
        form: ``folded``, ``half`` and ``plain`` compute the same; ``auto`` folds wherever that is possible.
        guidance: r >= 0, the identities' guidance as a factor of the text's, see ``core.twins``; None where they act in
            the conditional and the unconditional row, as the weights were trained.
        sharing: how several identities share a position: where ``regions`` overlap, each gets its part of them; by
            ``words``, its part of their words' attention, times its region.
    """

    identities: tuple[Identity, ...]
    schedule: Schedule = field(default_factory=Schedule)
    powers: Mapping[Level, float] = field(default_factory=lambda: GATE_POWERS)
    text: TextPathway = field(default_factory=TextPathway)
    lora: tuple[tuple[LowRank, float], ...] = ()
    form: Form = "auto"
    companion: tuple[SizeCompanion, float] | None = None
    sharing: Sharing = "regions"
    guidance: float | None = None

    def __post_init__(self) -> None:
        """Raises HostError where families that act at different places are mixed, or words to share by are missing."""
        if len({identity.mode == "gated" for identity in self.identities}) > 1:
            raise HostError(
                "FaceChain-FACT adapters cannot act beside adapters of other families",
                "Use one family for all identities.",
            )
        if self.by_words and self.gated:
            raise HostError(
                "FaceChain-FACT adapters act before the text attention, so persons cannot share by its words",
                "Give each person a region.",
            )
        if self.by_words and any(identity.entity is None for identity in self.identities):
            raise HostError("Persons share by words, but not all of them have some", "Give the words of each person.")

    @property
    def active(self) -> bool:
        """False when nothing would change: the host then patches nothing, and the output is bit-equal."""
        seen = [identity for identity in self.identities if identity.visible]
        return any(self.schedule.ever_active or identity.uses_photo for identity in seen)

    @property
    def follows_twins(self) -> bool:
        """Whether rows ever need twins without identity."""
        return self.text.strict or self.text.free or self.guidance is not None

    @property
    def uses_photo(self) -> bool:
        """Whether any photo is ever attended to."""
        return any(identity.uses_photo for identity in self.identities)

    def drop_idle(self) -> Injection:
        """The same without identities that are switched off, so that they push no others aside where masks overlap."""
        return replace(self, identities=tuple(identity for identity in self.identities if identity.visible))

    @property
    def by_words(self) -> bool:
        """Whether several identities share by their words; one alone has nobody to share with."""
        return self.sharing == "words" and len(self.identities) > 1

    @property
    def foldable(self) -> bool:
        """Whether the identities' term can be added behind the output projection."""
        trained = any(
            not isinstance(site, GatedSiteAdapter) and not site.bare
            for identity in self.identities
            for site in map(identity.adapter.site, range(len(identity.adapter.sites)))
        )
        on_text = any(identity.on_text is not None for identity in self.identities)
        possible = not trained and not on_text and not self.by_words and not self.text.emphasis
        return possible and all(i.mode in FOLDABLE for i in self.identities)

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
