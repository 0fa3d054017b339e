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
from dp_adapter.core.types import Row, Tokens
from dp_adapter.hosts.sites import Base, site_names
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
