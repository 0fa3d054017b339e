"""The two pathways at one site, for many people at once: attention processors that diffusers' blocks call.

The same mathematics as ``core.pathways``, which serves one generation; there every identity has rows, here every row
has an identity. Without a ``Call`` the blocks compute what they did before.

Shapes: B rows, N positions, C hidden channels, I inner channels, L text tokens, T identity tokens, D token width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import GatedSiteAdapter, SiteAdapter
from dp_adapter.core.attention import attend, split_heads
from dp_adapter.core.blend import join_pathways
from dp_adapter.core.regions.region_masks import on_grid
from dp_adapter.core.types import Grid, Site
from dp_adapter.training import losses

KEYWORD = "dp_adapter"

Record = Literal["fair", "localisation", "attention", "features"]
Processor = Callable[..., Tensor]


class Call:
    """What one forward of the adapted UNet gives its sites, and what they record for the losses.

    It travels to the sites in ``cross_attention_kwargs``, not on the modules: gradient checkpointing runs a block again
    in the backward, after other forwards with other conditions, and must find those of its own.

    No dataclass: FSDP copies those that enter a module with gradients in them (torch 2.13, ``replace_grad_tensors`` of
    ``torch.distributed.fsdp``), and what the sites record would be lost in the copies.

    Attributes:
        tokens: [B, T, D]; None for the base model's own attention.
        masks: by number of halvings of the latent grid, [B, N, 1].
        acts: [B, 1, 1], whether a row has a region at all; where not, the extension leaves the row alone.
        text_on: [B, 1, 1], the text attention's factor; None for 1.
        progress: [B, 1, 1], 0 at pure noise and 1 at the finished picture.
        latent: grid of the latents.
        weight: strength s.
        record: which of ``fair``, ``localisation``, ``shares`` and ``features`` the sites fill, by a site's index.
    """

    def __init__(
        self,
        *,
        tokens: Tensor | None,
        masks: Mapping[int, Tensor],
        acts: Tensor,
        text_on: Tensor | None,
        progress: Tensor,
        latent: Grid,
        weight: float,
        record: frozenset[Record],
    ) -> None:
        self.tokens, self.masks, self.acts, self.text_on = tokens, masks, acts, text_on
        self.progress, self.latent, self.weight, self.record = progress, latent, weight, record
        self.fair: dict[int, Tensor] = {}
        self.localisation: dict[int, Tensor] = {}
        self.shares: dict[int, Tensor] = {}
        self.features: dict[int, Tensor] = {}

    def switch_text(self, z: Tensor) -> Tensor:
        """Multiplies the text's attention [B, N, I] by ``text_on``."""
        return z if self.text_on is None else z * self.text_on.to(z)


def masks_by_halvings(mask: Tensor, halvings: int) -> dict[int, Tensor]:
    """The mask [B, 1, h, w] of the latent grid on this and every coarser grid, as the extension makes it: [B, N, 1]."""
    latent = Grid(*mask.shape[-2:])
    return {times: on_grid(mask[:, 0], latent, times).flatten(1)[..., None] for times in range(halvings + 1)}


class _TrainedProcessor(ABC):
    """A processor in an attention of diffusers; without a ``Call`` the ``original`` one runs."""

    def __init__(self, original: Processor) -> None:
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        dp_adapter: Call | None = None,
    ) -> Tensor:
        """[B, N, C], and in attn2 the text [B, L, D] -> [B, N, C]"""
        if dp_adapter is None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return self._attend(dp_adapter, attn, hidden_states, encoder_hidden_states)

    @abstractmethod
    def _attend(self, call: Call, attn: Any, hidden_states: Tensor, context: Tensor | None) -> Tensor: ...


class TrainedSelfAttention(_TrainedProcessor):
    """attn1's processor: the model's own attention, in the form whose backward is fast here (``core.attention``)."""

    def __init__(self, original: Processor, gate: TrainedGate | None = None) -> None:
        super().__init__(original)
        self._gate = gate

    def _attend(self, call: Call, attn: Any, hidden_states: Tensor, context: Tensor | None) -> Tensor:  # noqa: ARG002
        if self._gate is not None:
            self._gate.call = call
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        return _project_out(attn, attend(q, k, v, attn.heads))


class TrainedGate:
    """FACT's term between self-attention and text attention: ``norm2`` reads it, ``attn2`` adds it to the output.

    It holds a call only while a block runs, from attn1 to attn2.
    """

    def __init__(self, site: Site, weights: GatedSiteAdapter, power: float) -> None:
        self._site, self._weights, self._power = site, weights, power
        self.call: Call | None = None
        self._term: Tensor | None = None

    def before_norm2(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """A forward pre-hook of ``norm2``: adds the term to the hidden states [B, N, C]."""
        call, self.call = self.call, None
        if call is None or call.tokens is None:
            return None
        x, mask = args[0], call.masks[self._site.halvings]
        gain = call.weight * (mask**self._power).to(x)
        term: Tensor = self._weights(x, call.tokens, gain, self._site.heads)
        if "fair" in call.record:
            call.fair[self._site.index] = losses.fair(term, x, mask)
        self._term = term
        return (x + term, *args[1:])

    def take_term(self) -> Tensor | float:
        """Hands out the term [B, N, C] and forgets it; 0 where there is none."""
        term, self._term = self._term, None
        return 0.0 if term is None else term


class TrainedTextAttention(_TrainedProcessor):
    """attn2's processor: the text's attention Z_t, joined with the identity's.

    Args:
        weights: of the identity's attention; None where it acts in ``gate`` instead.
        power: of the mask in the gate that is not trained.
        localised: whether the localisation loss looks at this site; coarse: whether the mask loss does; edited: whether
            the editing direction is taken here.
    """

    def __init__(
        self,
        original: Processor,
        site: Site,
        weights: SiteAdapter | None,
        power: float,
        *,
        gate: TrainedGate | None = None,
        localised: bool,
        coarse: bool,
        edited: bool,
    ) -> None:
        super().__init__(original)
        self._site, self._weights, self._power, self._gate = site, weights, power, gate
        self._localised, self._coarse, self._edited = localised, coarse, edited

    def _attend(self, call: Call, attn: Any, hidden_states: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        z = call.switch_text(attend(q, k, v, self._site.heads))
        if self._edited and "features" in call.record:
            call.features[self._site.index] = z
        if self._weights is None or call.tokens is None:
            joined = f_t = z
        else:
            joined, f_t = self._join(self._weights, call, call.tokens, q, k, v, context, z)
            if "fair" in call.record:
                mask = call.masks[self._site.halvings]
                call.fair[self._site.index] = losses.fair(joined - f_t, hidden_states, mask)
        out = _project_out(attn, joined)
        return out if self._gate is None else out + self._gate.take_term()

    def _join(
        self,
        weights: SiteAdapter,
        call: Call,
        tokens: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        context: Tensor,
        z: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """F and F_t [B, N, I] of method.md."""
        mask, heads = call.masks[self._site.halvings], self._site.heads
        id_k, id_v = weights.to_k(tokens).to(q), weights.to_v(tokens).to(q)
        self._record(call, q, k, id_k, mask)
        term = call.weight * attend(q, id_k, id_v, heads)
        f_t = z
        if weights.text is not None:
            changed = call.switch_text(weights.text(q, context, k, v, heads, 1.0))
            f_t = torch.where(call.acts, changed, z)
        gain = (mask if weights.blending else mask**self._power).to(z)
        if weights.blending is None and weights.text is None:
            return z + gain * term, f_t
        # The extension computes no identity where the trained gate's mask is 0.
        f_v = torch.where(mask > 0, z + term, z) if weights.blending else z + term
        grid = call.latent.halved(self._site.halvings)
        return join_pathways(f_v, f_t, gain, weights.blending, grid, call.progress), f_t

    def _record(self, call: Call, q: Tensor, k: Tensor, id_k: Tensor, mask: Tensor) -> None:
        localised = self._localised and "localisation" in call.record
        coarse = self._coarse and "attention" in call.record
        if localised or coarse:
            share = identity_share(q, k, id_k, self._site.heads)
            if localised:
                call.localisation[self._site.index] = losses.localisation(share, mask[..., 0])
            if coarse:
                call.shares[self._site.index] = share


def identity_share(q: Tensor, k: Tensor, id_k: Tensor, heads: int) -> Tensor:
    """The identity's part of one softmax over its tokens and the text's, mean over heads: [B, N] in float32 [ours].

    The pathways have a softmax each, and the identity's own sums to 1 wherever it is, so it says nothing about where.
    What the losses on attention maps need is what a position would look at if it had to choose.

    Args:
        q: [B, N, I]; k: [B, L, I] of the text; id_k: [B, T, I] of the identity.
    """
    q = split_heads(q, heads) * (q.shape[-1] // heads) ** -0.5
    text, identity = ((q @ split_heads(x, heads).mT).float().logsumexp(-1) for x in (k, id_k))  # [B, heads, N]
    return torch.sigmoid(identity - text).mean(1)


def _project_out(attn: Any, inner: Tensor) -> Tensor:
    """W_o and the dropout behind it: [B, N, I] -> [B, N, C]."""
    return cast(Tensor, attn.to_out[1](attn.to_out[0](inner)))
