"""The folded forms against the plain one, and all against loops over heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.attention import (
    attend,
    effective_weight,
    fold,
    folded_attention,
    half_fold,
    half_folded_attention,
    merge_heads,
    split_heads,
)
from tests.precision import FLOAT16

CHANNELS, HEADS, TOKENS, POSITIONS = 24, 3, 5, 11


def by_loops(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    width = q.shape[1] // heads
    out = torch.zeros_like(q)
    for n in range(len(q)):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = torch.stack([q[n, part] @ k[t, part] for t in range(len(k))]) / width**0.5
            out[n, part] = torch.exp(logits - logits.max()) / torch.exp(logits - logits.max()).sum() @ v[:, part]
    return out


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_heads_split_and_merge() -> None:
    x = randn(2, POSITIONS, CHANNELS)
    split = split_heads(x, HEADS)
    assert split.shape == (2, HEADS, POSITIONS, CHANNELS // HEADS)
    assert torch.equal(split[1, 2, 4], x[1, 4, 16:24])
    assert torch.equal(merge_heads(split), x)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_attend(heads: int) -> None:
    q, k, v = randn(POSITIONS, CHANNELS), randn(TOKENS, CHANNELS, seed=1), randn(TOKENS, CHANNELS, seed=2)
    torch.testing.assert_close(attend(q, k, v, heads), by_loops(q, k, v, heads), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attend_in_training(dtype: torch.dtype) -> None:
    """On a CPU it is written out there, with leading sides of every number."""
    given = (randn(2, POSITIONS, CHANNELS), randn(2, TOKENS, CHANNELS, seed=1), randn(2, TOKENS, CHANNELS, seed=2))
    q, k, v = (x.to(dtype) for x in given)
    plain = attend(q, k, v, HEADS)
    trained = attend(q, k.clone().requires_grad_(), v, HEADS)
    assert "Softmax" in _history(trained) and trained.dtype == dtype
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(trained.detach(), plain, atol=tolerance, rtol=tolerance)
    large = torch.zeros(1, 2048, 2, requires_grad=True)
    assert "Softmax" not in _history(attend(large, large, large, 1))


def _history(x: Tensor) -> str:
    """Names of the operations that made a tensor."""
    names, pending = list[str](), [x.grad_fn]
    while pending:
        if node := pending.pop():
            names.append(node.name())
            pending.extend(before for before, _ in node.next_functions)
    return " ".join(names)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inner", "heads"), [(24, 3), (16, 2), (48, 6)])
def test_fold(inner: int, heads: int, bias: bool) -> None:
    """The inner width may differ from the channels; a bias of W_o belongs to the base model and must not come twice."""
    torch.manual_seed(0)
    to_q, to_out = nn.Linear(CHANNELS, inner, bias=False), nn.Linear(inner, CHANNELS, bias=bias)
    h = randn(POSITIONS, CHANNELS)
    several = [(randn(n, inner, seed=n), randn(n, inner, seed=9 + n)) for n in (TOKENS, 1, 7)]
    with torch.no_grad():
        folds = fold(several, to_q, to_out, CHANNELS, heads)
        halves = [half_fold(k, v, to_out, heads) for k, v in several]
        for (k, v), folded, half in zip(several, folds, halves, strict=True):
            (alone,) = fold([(k, v)], to_q, to_out, CHANNELS, heads)
            assert torch.equal(alone.keys, folded.keys) and torch.equal(alone.values, folded.values)
            assert folded.keys.shape == (CHANNELS, heads * len(k))
            assert half.keys.shape == (heads, inner // heads, len(k))
            assert folded.values.shape == half.values.shape == (heads * len(k), CHANNELS)
            expected = by_loops(to_q(h), k, v, heads) @ to_out.weight.T
            torch.testing.assert_close(folded_attention(h, folded), expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(half_folded_attention(to_q(h), half), expected, atol=1e-5, rtol=1e-4)


def test_effective_weight_includes_what_a_module_adds() -> None:
    torch.manual_seed(0)
    linear, down, up = nn.Linear(6, 4), randn(2, 6), randn(4, 2, seed=1)
    linear.register_forward_hook(lambda _module, args, output: output + args[0] @ down.T @ up.T)
    weight = effective_weight(linear, 6, torch.zeros(1))
    torch.testing.assert_close(weight, (linear.weight + up @ down).T)


@pytest.mark.parametrize("dtype", [FLOAT16, torch.bfloat16])
def test_fold_keeps_the_precision_of_the_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    to_q, to_out = (nn.Linear(CHANNELS, CHANNELS, bias=bias).to(dtype) for bias in (False, True))
    h, k, v = (randn(n, CHANNELS, seed=n).to(dtype) for n in (POSITIONS, TOKENS, TOKENS))
    with torch.no_grad():
        (folded,), (half,) = fold([(k, v)], to_q, to_out, CHANNELS, HEADS), [half_fold(k, v, to_out, HEADS)]
        outs = folded_attention(h, folded), half_folded_attention(to_q(h), half)
        expected = by_loops((to_q.float()(h.float())), k.float(), v.float(), HEADS) @ to_out.float().weight.T
    for used, out in zip((folded, half), outs, strict=True):
        assert used.keys.dtype == used.values.dtype == out.dtype == dtype
        assert (out.float() - expected).abs().max() < (0.01 if dtype == torch.float16 else 0.08)
