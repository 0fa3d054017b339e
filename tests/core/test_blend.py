"""Blend modes and FFB against formulas written here from the papers, element by element."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dp_adapter.core.attention import attend
from dp_adapter.core.blend import FeatureBlending, TextAttention, TextConsistency, blend, identity_term, text_emphasis
from dp_adapter.core.types import BlendMode, Grid
from tests.precision import FLOAT16

N, INNER, T, L, HEADS = 12, 16, 7, 5, 4


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Q, K, V, TEXT_K, TEXT_V = (randn(n, INNER, seed=i) for i, n in enumerate((N, T, T, L, L)))
TEXT = TextAttention(attend(Q, TEXT_K, TEXT_V, HEADS), TEXT_K, TEXT_V)


def softmax_rows(logits: Tensor) -> Tensor:
    weights = torch.exp(logits - logits.max(-1, keepdim=True).values)
    return weights / weights.sum(-1, keepdim=True)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    width = INNER // HEADS
    parts = [slice(h * width, (h + 1) * width) for h in range(HEADS)]
    return torch.cat([softmax_rows(q[:, p] @ k[:, p].T / math.sqrt(width)) @ v[:, p] for p in parts], 1)


def term(mode: BlendMode, text: TextAttention = TEXT) -> Tensor:
    return identity_term(mode, Q, K, V, text, HEADS)


def test_add() -> None:
    torch.testing.assert_close(term("add"), attention(Q, K, V))


def test_norm_has_the_texts_length_and_the_identitys_direction() -> None:
    """UniID: Z_id ||Z_t|| / ||Z_id||, the lengths over all positions and channels of a row, as in its code."""
    z_id, out = attention(Q, K, V), term("norm")
    length = math.sqrt(sum(x * x for x in TEXT.z.flatten().tolist()))
    own = math.sqrt(sum(x * x for x in z_id.flatten().tolist()))
    torch.testing.assert_close(out, z_id * (length / own))
    rows = torch.stack([z_id, TEXT.z])[:, None]
    official = torch.linalg.norm(rows, dim=(2, 3), keepdim=True)
    torch.testing.assert_close(out, z_id * (official[1] / official[0])[0])


def test_emphasis_raises_the_text_outside_and_leaves_pictures_without_a_face() -> None:
    gate = torch.tensor([[1.0], [1.0], [0.5], [0.0]])
    factors = text_emphasis(gate, 0.8)
    assert float(factors.mean()) == pytest.approx(1) and factors[3] > factors[2] > 1
    assert torch.equal(text_emphasis(torch.zeros(4, 1), 0.8), torch.ones(4, 1))


def test_norm_of_a_vanishing_identity_is_finite() -> None:
    out = identity_term("norm", Q, K, torch.zeros_like(V), TEXT, HEADS)
    assert not out.any()


def test_adain_mean_moves_the_means_of_k_and_v() -> None:
    """Infinite-ID: every channel's mean over the tokens becomes that of the text; nothing else changes."""
    k, v = K.clone(), V.clone()
    for channel in range(INNER):
        k[:, channel] += TEXT_K[:, channel].sum() / L - K[:, channel].sum() / T
        v[:, channel] += TEXT_V[:, channel].sum() / L - V[:, channel].sum() / T
    torch.testing.assert_close(term("adain_mean"), attention(Q, k, v))


def test_orthogonal_removes_what_lies_along_the_text() -> None:
    """PuLID: per channel, over the positions."""
    out, z_id = term("orthogonal"), attention(Q, K, V)
    torch.testing.assert_close((out * TEXT.z).sum(0), torch.zeros(INNER, dtype=torch.float64), atol=1e-5, rtol=0)
    removed = z_id - out
    for channel in range(INNER):
        share = (z_id[:, channel] @ TEXT.z[:, channel]) / (TEXT.z[:, channel] @ TEXT.z[:, channel])
        torch.testing.assert_close(removed[:, channel], share * TEXT.z[:, channel], atol=1e-6, rtol=1e-5)


def test_orthogonal_v2_keeps_as_much_as_attends_to_the_first_five_tokens() -> None:
    z_id = attention(Q, K, V)
    along = z_id - term("orthogonal")
    width = INNER // HEADS
    kept = torch.zeros(N, 1, dtype=torch.float64)
    for h in range(HEADS):
        part = slice(h * width, (h + 1) * width)
        kept += softmax_rows(Q[:, part] @ K[:, part].T)[:, :5].sum(1, keepdim=True) / HEADS
    torch.testing.assert_close(term("orthogonal_v2"), z_id + (kept - 1) * along, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["orthogonal", "orthogonal_v2"])
def test_orthogonal_to_nothing_is_everything(mode: BlendMode) -> None:
    text = TextAttention(torch.zeros_like(TEXT.z), TEXT_K, TEXT_V)
    torch.testing.assert_close(term(mode, text), attention(Q, K, V), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", ["add", "orthogonal", "orthogonal_v2", "norm", "adain_mean"])
@pytest.mark.parametrize("dtype", [FLOAT16, torch.bfloat16, torch.float32], ids=str)
def test_modes_keep_the_dtype(mode: BlendMode, dtype: torch.dtype) -> None:
    q, k, v, text_k, text_v, z = (x.to(dtype) for x in (Q, K, V, TEXT_K, TEXT_V, TEXT.z))
    out = identity_term(mode, q, k, v, TextAttention(z, text_k, text_v), HEADS)
    assert out.dtype == dtype
    assert (out.double() - term(mode)).abs().max() < {2: 0.2, 4: 1e-4}[dtype.itemsize]


# FFB.


def test_blend_is_a_weighted_mean() -> None:
    f_v, f_t, gate = randn(N, INNER, seed=1), randn(N, INNER, seed=2), torch.rand(N, 1, dtype=torch.float64)
    torch.testing.assert_close(blend(f_v, f_t, gate), gate * f_v + (1 - gate) * f_t)
    assert torch.equal(blend(f_v, f_t, torch.ones(N, 1)), f_v)
    assert torch.equal(blend(f_v, f_t, torch.zeros(N, 1)), f_t)


def test_text_emphasis_preserves_the_mean() -> None:
    gate = torch.tensor([[0.0], [0.5], [1.0], [1.0]])
    factors = text_emphasis(gate, 2.0)
    torch.testing.assert_close(factors.flatten(), torch.tensor([3.0, 2.0, 1.0, 1.0]) / 1.75)
    assert torch.equal(text_emphasis(torch.ones(4, 1), 2.0), torch.ones(4, 1))


def ffb(width: int = 8) -> FeatureBlending:
    torch.manual_seed(0)
    return FeatureBlending(width, rank=2)


def test_a_fresh_gate_is_the_mask() -> None:
    mask = torch.rand(12, 1)
    f_v, f_t = torch.randn(2, 12, 8)
    net = ffb()
    with torch.no_grad():
        torch.testing.assert_close(net.gate(f_v, f_t, mask, Grid(3, 4), 0.3), mask)
        assert not net.seam_term(f_v, f_t, mask).any()


def test_a_trained_gate_follows_its_formula_and_never_leaves_a_hard_mask() -> None:
    net, grid = ffb(), Grid(3, 4)
    with torch.no_grad():
        net.g.fill_(0.6)
        net.r.fill_(-0.4)
        mask = torch.rand(12, 1)
        mask[[0, 5]] = 0
        mask[[3, 7]] = 1
        f_v, f_t = torch.randn(2, 12, 8)
        gate, seam = net.gate(f_v, f_t, mask, grid, 0.3), net.seam_term(f_v, f_t, mask)
        tau = [f(math.pi * 0.3 * 2**octave) for octave in range(4) for f in (math.sin, math.cos)]
        features = torch.cat(
            [
                net.project_v(net.norm_v(f_v)),
                net.project_t(net.norm_t(f_t)),
                mask,
                torch.tensor(tau).expand(12, -1),
            ],
            1,
        )
        picture = features.reshape(3, 4, -1).permute(2, 0, 1)
        shift = net.conv(picture[None])[0, 0].flatten()
        for n in range(12):
            m = mask[n].item()
            if m in {0.0, 1.0}:
                assert gate[n].item() == m
                assert not seam[n].any()
                continue
            logit = math.log(m / (1 - m)) + math.tanh(0.6) * shift[n].item()
            assert gate[n].item() == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
            expected = math.tanh(-0.4) * net.seam(torch.cat([f_v[n], f_t[n]])) * 4 * m * (1 - m)
            torch.testing.assert_close(seam[n], expected)
        assert (net.gate(f_v, f_t, mask, grid, 0.9) - gate).abs().max() > 1e-4, "the gate knows the time"


def test_gradients_of_a_gate_with_hard_edges_are_finite() -> None:
    net = ffb()
    torch.nn.init.constant_(net.g, 0.5)
    mask = torch.tensor([0.0, 1.0, 0.5, 0.2]).repeat(3)[:, None]
    f_v, f_t = torch.randn(2, 12, 8)
    net.gate(f_v, f_t, mask, Grid(3, 4), 0.3).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert net.g.grad is not None


def test_text_consistency_is_low_rank_and_starts_at_nothing() -> None:
    torch.manual_seed(0)
    net = TextConsistency(6, INNER, rank=2).double()
    context = randn(L, 6, seed=8)
    with torch.no_grad():
        assert torch.equal(net(Q, context, TEXT_K, TEXT_V, HEADS, 1.0), TEXT.z)
        for parameter in net.parameters():
            parameter.normal_()
        change_k = context @ (net.k_up.weight @ net.k_down.weight).T
        change_v = context @ (net.v_up.weight @ net.v_down.weight).T
        for weight in (0.0, 0.5, 1.0):
            expected = attention(Q, TEXT_K + weight * change_k, TEXT_V + weight * change_v)
            torch.testing.assert_close(net(Q, context, TEXT_K, TEXT_V, HEADS, weight), expected)
