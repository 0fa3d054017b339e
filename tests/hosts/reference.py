"""Decoupled cross-attention written from the paper, as a diffusers attention processor; shares no code with ours.

IP-Adapter (arXiv 2308.06721), equation 5: ``out = W_o (Attn(Q, K, V) + s * Attn(Q, K', V'))``, K', V' of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.injection import Identity
from dp_adapter.core.types import Row, Tokens
from dp_adapter.hosts.attach.sites import Base, site_names
from tests import tiny


class DecoupledAttention:
    """Every row attends to its own identity tokens [R, T, D]."""

    def __init__(self, tokens: Tensor, w_k: Tensor, w_v: Tensor, scale: float) -> None:
        self.tokens, self.w_k, self.w_v, self.scale = tokens, w_k, w_v, scale

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> Tensor:
        to_q, to_k, to_v, to_out = (attn.get_submodule(f"to_{name}") for name in ("q", "k", "v", "out.0"))
        q = to_q(hidden_states)
        text = _softmax_attention(q, to_k(encoder_hidden_states), to_v(encoder_hidden_states), heads=attn.heads)
        identity = _softmax_attention(q, self.tokens @ self.w_k.T, self.tokens @ self.w_v.T, heads=attn.heads)
        out: Tensor = to_out(text + self.scale * identity)
        return out


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    out = torch.empty_like(q)
    width = q.shape[-1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = torch.einsum("rnd,rtd->rnt", q[..., part], k[..., part]) / width**0.5
        out[..., part] = torch.einsum("rnt,rtd->rnd", logits.softmax(-1), v[..., part])
    return out


def reference_output(
    base: Base, adapter: Adapter, tokens: Tokens, rows: Sequence[Row], given: tiny.Inputs, scale: float
) -> Tensor:
    """The whole UNet's output with the reference processor in every text cross-attention."""
    model: nn.Module = tiny.unet(base)
    per_row = torch.stack([tokens.cond if row.kind == "cond" else tokens.uncond for row in rows])
    for site in site_names(base):
        weights = adapter.sites[site.index]
        assert isinstance(weights, SiteAdapter)
        attn2 = model.get_submodule(site.diffusers + ".attn2")
        assert isinstance(attn2, Attention)
        attn2.processor = DecoupledAttention(per_row, weights.to_k.weight, weights.to_v.weight, scale)  # type: ignore[assignment]
    with torch.no_grad():
        return tiny.call(model, given)


class WordsAttention:
    """MIP-Adapter (arXiv 2409.17920), section 3: ``out = W_o (Z_t + s * w * sum_k a_k / sum_j a_j * Z_k)`` in each row.

    a_k is the attention that the words of person k pay to the positions, w the sigmoid of a linear layer of Z_t over
    its mean.

    Args:
        rows: per row the persons' tokens [T, D] and the tokens of their words [t, D]; None for a row without identity.
        wanted: [I], the linear layer; None where there is none.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[tuple[Tensor, Tensor]] | None],
        w_k: Tensor,
        w_v: Tensor,
        wanted: Tensor | None,
        scale: float,
    ) -> None:
        self.rows, self.w_k, self.w_v, self.wanted, self.scale = rows, w_k, w_v, wanted, scale

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> Tensor:
        to_q, to_k, to_v, to_out = (attn.get_submodule(f"to_{name}") for name in ("q", "k", "v", "out.0"))
        q = to_q(hidden_states)
        z = _softmax_attention(q, to_k(encoder_hidden_states), to_v(encoder_hidden_states), heads=attn.heads)
        for row, persons in enumerate(self.rows):
            if persons is None:
                continue
            maps = [_over_positions(q[row], to_k(words), attn.heads) for _, words in persons]
            weight = torch.ones(z.shape[1])
            if self.wanted is not None:
                weight = 1 / (1 + torch.exp(-torch.einsum("ni,i->n", z[row], self.wanted)))
                weight = weight * len(weight) / weight.sum()
            term = torch.zeros_like(z[row])
            for place, (tokens, _) in zip(maps, persons, strict=True):
                mine = _softmax_attention(
                    q[row, None], tokens[None] @ self.w_k.T, tokens[None] @ self.w_v.T, attn.heads
                )
                term = term + (weight * place / sum(maps))[:, None] * mine[0]
            z[row] = z[row] + self.scale * term
        out: Tensor = to_out(z)
        return out


def _over_positions(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """[N, I] and [t, I] -> [N]: how much of the words' attention each position gets."""
    width = q.shape[-1] // heads
    parts = [slice(head * width, (head + 1) * width) for head in range(heads)]
    maps = [torch.einsum("ti,ni->tn", k[:, part], q[:, part]) / width**0.5 for part in parts]
    return sum((one - one.logsumexp(1, keepdim=True)).exp().sum(0) for one in maps) / (heads * len(k))  # type: ignore[return-value]


def shared_output(base: Base, identities: Sequence[Identity], rows: Sequence[Row], given: tiny.Inputs) -> Tensor:
    """The whole UNet's output where several identities without regions share by their words."""
    model: nn.Module = tiny.unet(base)
    per_row = [
        None if row.kind == "text" else [(one.tokens.of(row.kind), _words(one, row)) for one in identities]
        for row in rows
    ]
    for site in site_names(base):
        weights = identities[0].adapter.sites[site.index]
        assert isinstance(weights, SiteAdapter)
        wanted = None if weights.text_to_weight is None else weights.text_to_weight.weight[0]
        attn2 = model.get_submodule(site.diffusers + ".attn2")
        assert isinstance(attn2, Attention)
        k, v, scale = weights.to_k.weight, weights.to_v.weight, identities[0].weight
        attn2.processor = WordsAttention(per_row, k, v, wanted, scale)  # type: ignore[assignment]
    with torch.no_grad():
        return tiny.call(model, given)


def _words(one: Identity, row: Row) -> Tensor:
    assert one.entity is not None
    text = one.entity.cond if row.kind == "cond" else one.entity.uncond
    return text[1 : 1 + one.entity.tokens]
