"""Reference self-attention written from the papers, as a diffusers attention processor; shares no code with ours.

FreeCustom (arXiv 2405.13870), equation 4: the picture's queries attend to its own keys and to the photo's inside the
photo's mask, one softmax over both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.types import Tokens
from dp_adapter.hosts.attach.sites import Base, site_names
from tests import tiny
from tests.hosts.reference import DecoupledAttention


@dataclass(frozen=True)
class Photo:
    """One photo: hard masks [1, h, w] over the latents' cells of where it is looked at from, and of its own person.

    ``noisy`` are its latents [4, h, w] as the UNet gets them.
    """

    noisy: Tensor
    region: Tensor
    mask: Tensor
    weight: float


class JoinedAttention:
    def __init__(self, photos: Sequence[Photo], rows: int, halvings: int) -> None:
        self.photos, self.rows, self.side = photos, rows, 2**halvings

    def __call__(self, attn: Attention, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        to_q, to_k, to_v, to_out = (attn.get_submodule(f"to_{name}") for name in ("q", "k", "v", "out.0"))
        q, k, v = to_q(hidden_states), to_k(hidden_states), to_v(hidden_states)
        everywhere = torch.ones(k.shape[1])
        own = [_masked(attn, q[row], [(k[row], v[row], everywhere)]) for row in range(len(q))]
        out = [to_out(one) for one in own]
        for row in range(self.rows):
            changed = out[row]
            for number, photo in enumerate(self.photos):
                last = self.rows + number
                pairs = [(k[row], v[row], everywhere), (k[last], v[last], self._cells(photo.mask).float())]
                gate = self._cells(photo.region).float()[:, None] * photo.weight
                changed = changed + gate * (to_out(_masked(attn, q[row], pairs)) - out[row])
            out[row] = changed
        return torch.stack(out)

    def _cells(self, mask: Tensor) -> Tensor:
        return mask[0, :: self.side, :: self.side].flatten() > 0


def _masked(attn: Attention, q: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Attention of q [N, I] to several (keys, values, mask) [M, I], [M, I], [M]: one softmax over what masks leave."""
    keys, values, mask = (torch.cat([pair[i] for pair in pairs]) for i in range(3))
    out = torch.empty_like(q)
    width = q.shape[-1] // attn.heads
    for head in range(attn.heads):
        part = slice(head * width, (head + 1) * width)
        logits = q[:, part] @ keys[:, part].T / width**0.5
        out[:, part] = logits.masked_fill(mask == 0, -torch.inf).softmax(-1) @ values[:, part]
    return out


def joined_output(
    base: Base, given: tiny.Inputs, photos: Sequence[Photo], source: int, identity: tuple[Adapter, Tokens] | None = None
) -> Tensor:
    """The whole UNet's output for the rows of ``given``, the photos running beside them with the text of ``source``.

    Args:
        identity: decoupled attention in the text cross-attentions, of rows that are conditional and unconditional.
    """
    model: nn.Module = tiny.unet(base)
    count = len(given.latents)
    wide = given.rows([*range(count), *[source] * len(photos)])
    wide.latents[count:] = torch.stack([photo.noisy for photo in photos])
    for site in site_names(base):
        block = model.get_submodule(site.diffusers)
        if site.diffusers.startswith("up_blocks"):
            block.attn1.processor = JoinedAttention(photos, count, site.halvings)  # type: ignore[assignment,union-attr]
        if identity is not None:
            weights = identity[0].site(site.index)
            assert isinstance(weights, SiteAdapter)
            pair = torch.stack([identity[1].cond, identity[1].uncond])
            decoupled = DecoupledAttention(pair, weights.to_k.weight, weights.to_v.weight, 1.0)
            block.attn2.processor = _FirstRows(decoupled)  # type: ignore[assignment,union-attr]
    with torch.no_grad():
        return tiny.call(model, wide)[:count]


class _FirstRows:
    """The two first rows have the identity, the photos behind them only the text."""

    def __init__(self, inner: DecoupledAttention) -> None:
        self.inner = inner

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> Any:
        wide = [torch.cat([self.inner.tokens, self.inner.tokens[:1].expand(len(hidden_states) - 2, -1, -1)])]
        scale = self.inner.scale
        with_all = DecoupledAttention(wide[0], self.inner.w_k, self.inner.w_v, scale)
        without = DecoupledAttention(wide[0], self.inner.w_k, self.inner.w_v, 0.0)
        first = with_all(attn, hidden_states, encoder_hidden_states)
        return torch.cat([first[:2], without(attn, hidden_states, encoder_hidden_states)[2:]])
