"""Decoupled identity attention, in the plain and in the folded form.

Shapes: n query positions, C hidden channels, I = heads * head_dim inner channels, T identity tokens, D token width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., n, heads * head_dim] -> [..., heads, n, head_dim]"""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """[..., heads, n, head_dim] -> [..., n, heads * head_dim]"""
    return x.transpose(-2, -3).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head softmax attention before the output projection.

    Args:
        q: [..., n, I]; k, v: [..., T, I].

    Returns:
        [..., n, I]
    """
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    return merge_heads(F.scaled_dot_product_attention(q, k, v))


@dataclass(frozen=True)
class Folded:
    """Both projections of a site folded into the identity's keys and values (method.md, "Speed").

    Attributes:
        keys: [C, heads * T], KQ = W_q^T K_id / sqrt(head_dim), head by head.
        values: [heads * T, C], VO = V_id W_o, head by head.
        heads: number of heads.
    """

    keys: Tensor
    values: Tensor
    heads: int


def effective_weight(linear: Linear, in_features: int, like: Tensor) -> Tensor:
    """W of a linear map found by calling it on the identity matrix, so that LoRA and quantised storage are included.

    Args:
        like: a tensor whose dtype and device the map takes.

    Returns:
        [in_features, out_features] in float32: ``linear(x) - linear(0) == x @ W``.
    """
    eye = torch.eye(in_features, dtype=like.dtype, device=like.device)
    return linear(eye).float() - linear(torch.zeros_like(eye[:1])).float()


def fold(k: Tensor, v: Tensor, to_q: Linear, to_out: Linear, channels: int, heads: int) -> Folded:
    """Folds ``to_q`` and ``to_out`` into keys and values of the identity, computing in float32.

    Args:
        k, v: [T, I], in the dtype and on the device the two maps take.
        channels: C, the input width of ``to_q``.

    Returns:
        Factors in the dtype of ``k``.
    """
    head_dim = k.shape[-1] // heads
    w_q = split_heads(effective_weight(to_q, channels, k), heads)  # [heads, C, head_dim]
    keys = w_q @ split_heads(k.float(), heads).mT * head_dim**-0.5  # [heads, C, T]
    per_head = torch.zeros(heads, v.shape[0], heads, head_dim, dtype=v.dtype, device=v.device)
    for head, values in enumerate(split_heads(v, heads)):
        per_head[head, :, head] = values
    rows = per_head.flatten(2).flatten(0, 1)  # [heads * T, I], one head's channels in each row
    values = to_out(rows).float() - to_out(torch.zeros_like(rows[:1])).float()
    return Folded(
        keys.transpose(0, 1).flatten(1).to(k.dtype).contiguous(),  # [C, heads * T]
        values.to(k.dtype).contiguous(),  # [heads * T, C]
        heads,
    )


def folded_attention(hidden_states: Tensor, folded: Folded) -> Tensor:
    """``Z_id W_o`` straight from the hidden states.

    Args:
        hidden_states: [n, C].

    Returns:
        [n, C]
    """
    logits = hidden_states @ folded.keys  # [n, heads * T]
    per_head = logits.reshape(len(logits), folded.heads, -1)  # [n, heads, T]
    attention = per_head.softmax(dim=-1, dtype=torch.float32).to(hidden_states.dtype)
    return attention.flatten(-2) @ folded.values
