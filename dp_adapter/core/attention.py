"""Decoupled identity attention, in the plain, the half-folded and the folded form.

Shapes: n query positions, C hidden channels, I = heads * head_dim inner channels, T identity tokens, D token width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]

_WRITTEN_OUT = 1024 * 1024  # queries x keys


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
    if _plain_is_faster(q, k, v):
        logits = q * q.shape[-1] ** -0.5 @ k.mT
        attention = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return merge_heads(attention.to(v.dtype) @ v)
    return merge_heads(F.scaled_dot_product_attention(q, k, v))


def _plain_is_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether to write the attention out: in training on a CPU, where the backward of torch's kernel is slow.

    Measured on 2 cores: written out, forward and backward together are 1.7 times faster at 16 x 16 cells. Not where the
    attention's own matrix would fill the memory.
    """
    trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return trained and q.device.type == "cpu" and q.shape[-2] * k.shape[-2] <= _WRITTEN_OUT


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


@dataclass(frozen=True)
class HalfFolded:
    """Only W_o folded into the identity's values; the queries are the host's own.

    Attributes:
        keys: [heads, head_dim, T], K_id^T / sqrt(head_dim).
        values: [heads * T, C], VO = V_id W_o, head by head.
    """

    keys: Tensor
    values: Tensor


def effective_weight(linear: Linear, in_features: int, like: Tensor) -> Tensor:
    """W of a linear map found by calling it on the identity matrix, so that LoRA and quantised storage are included.

    Args:
        like: a tensor whose dtype and device the map takes.

    Returns:
        [in_features, out_features] in float32: ``linear(x) - linear(0) == x @ W``.
    """
    eye = torch.eye(in_features, device=like.device).to(like.dtype)  # torch 2.1 makes none in bfloat16
    return linear(eye).float() - linear(torch.zeros_like(eye[:1])).float()


KeysValues = Sequence[tuple[Tensor, Tensor]]
"""K and V [T, I] of several identities or kinds of row, in the dtype and on the device that a site's maps take."""


def fold(several: KeysValues, to_q: Linear, to_out: Linear, channels: int, heads: int) -> list[Folded]:
    """Folds ``to_q`` and ``to_out`` into keys and values, computing in float32.

    Several at once, because finding W_q costs more than folding it into a few tokens; each comes out as it does alone.

    Args:
        channels: C, the input width of ``to_q``.

    Returns:
        For each of ``several`` the factors, in its dtype.
    """
    w_q = split_heads(effective_weight(to_q, channels, several[0][0]), heads)  # [heads, C, head_dim]
    folded: list[Folded] = []
    for k, v in several:
        keys = w_q @ split_heads(k.float(), heads).mT * w_q.shape[-1] ** -0.5  # [heads, C, T]
        by_token = keys.transpose(0, 1).flatten(1).to(k.dtype).contiguous()  # [C, heads * T]
        folded.append(Folded(by_token, fold_values(v, to_out, heads), heads))
    return folded


def half_fold(k: Tensor, v: Tensor, to_out: Linear, heads: int) -> HalfFolded:
    """Folds ``to_out`` alone into the values [T, I], computing in float32; the factors are in the dtype of ``k``."""
    by_head = split_heads(k.float(), heads).mT  # [heads, head_dim, T]
    keys = (by_head * by_head.shape[1] ** -0.5).to(k.dtype).contiguous()
    return HalfFolded(keys, fold_values(v, to_out, heads))


def fold_values(v: Tensor, to_out: Linear, heads: int) -> Tensor:
    """VO = V_id W_o, head by head: [T, I] -> [heads * T, C] in the same dtype."""
    per_head = torch.zeros(heads, len(v), heads, v.shape[-1] // heads, dtype=v.dtype, device=v.device)
    for head, values in enumerate(split_heads(v, heads)):
        per_head[head, :, head] = values
    rows = per_head.flatten(2).flatten(0, 1)  # [heads * T, I], one head's channels in each row
    folded = to_out(rows).float() - to_out(torch.zeros_like(rows[:1])).float()
    return folded.to(v.dtype).contiguous()


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


def half_folded_attention(q: Tensor, folded: HalfFolded) -> Tensor:
    """``Z_id W_o`` from the queries [n, I]: [n, C]."""
    logits = split_heads(q, len(folded.keys)) @ folded.keys  # [heads, n, T]
    attention = logits.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return merge_heads(attention) @ folded.values
