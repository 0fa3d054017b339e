"""Fine-Grained Feature-Level Blending: the published ways to add an identity to the text's attention, and the gate.

Shapes: n positions of one row, I = heads * head_dim, T identity tokens, L text tokens. All terms are before W_o.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dp_adapter.core.attention import attend, split_heads
from dp_adapter.core.types import BlendMode, Grid

GLOBAL_TOKENS = 5
"""PuLID's first tokens, which carry the face as a whole (ToTheBeginning/PuLID@1aa2fc7 attention_processor.py)."""
_TIME_FEATURES = 8


@dataclass(frozen=True)
class TextAttention:
    """What the base model computed in one row: z [n, I] at the identity's positions, k and v [L, I] of its text."""

    z: Tensor
    k: Tensor
    v: Tensor


def identity_term(mode: BlendMode, q: Tensor, k: Tensor, v: Tensor, text: TextAttention, heads: int) -> Tensor:
    """B(Z_t, Z_id), the term that is added to Z_t.

    Args:
        q: [n, I]; k, v: [T, I] of the identity.

    Returns:
        [n, I]
    """
    if mode == "adain_mean":  # Infinite-ID's AdaIN-m (arXiv 2403.11781), means without deviations
        k = k - k.mean(0) + text.k.mean(0)
        v = v - v.mean(0) + text.v.mean(0)
    z_id = attend(q, k, v, heads)
    if mode == "norm":  # UniID: lengths over positions and channels (lyuPang/UniID@41cd236, linalg.norm(dim=(1, 2)))
        return z_id * (_norm(text.z) / _norm(z_id).clamp(min=1e-12)).to(z_id)
    if mode == "orthogonal":
        return z_id - _projection(z_id, text.z).to(z_id)
    if mode == "orthogonal_v2":
        kept = _global_attention(q, k, heads)
        return (z_id.float() + (kept - 1) * _projection(z_id, text.z)).to(z_id)
    return z_id


def _norm(x: Tensor) -> Tensor:
    """Of all numbers of [n, I] together, in float32 or better: []."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().sum().sqrt()


def _projection(z_id: Tensor, z_text: Tensor) -> Tensor:
    """Part of the identity that lies along the text's features, channel by channel over the positions (PuLID), float32.

    Both [n, I] -> [n, I].
    """
    z_id, z_text = z_id.float(), z_text.float()
    along = (z_id * z_text).sum(-2, keepdim=True) / (z_text * z_text).sum(-2, keepdim=True).clamp(min=1e-12)
    return along * z_text


def _global_attention(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Share of attention on the identity's global tokens, averaged over heads; unscaled softmax as in PuLID: [n, 1]."""
    logits = split_heads(q, heads) @ split_heads(k, heads).mT  # [heads, n, T]
    return logits.softmax(-1, dtype=torch.float32).mean(0)[:, :GLOBAL_TOKENS].sum(-1, keepdim=True)


def text_emphasis(gate: Tensor, amount: float) -> Tensor:
    """Factors of the text pathway: 1 + a (1 - G), divided by their mean over the grid.

    They are at least 1 outside the region, and 1 everywhere in a picture without one. The identity pathway, inside, has
    the text's attention as it is.

    Args:
        gate: [N, 1], the summed gate of one row.

    Returns:
        [N, 1]
    """
    factors = 1 + amount * (1 - gate)
    return factors / factors.mean()


class FeatureBlending(nn.Module):
    """Trained FFB of one site: the gate G and the seam term of method.md [ours]; identity at initialisation.

    ``G = sigmoid(logit(M) + tanh(g) conv3x3([P_v LN F_v; P_t LN F_t; M; tau(t)]))`` with g = 0, and
    ``tanh(r) FFN([F_v; F_t]) * 4 M (1 - M)`` with r = 0.
    """

    def __init__(self, width: int, rank: int = 16) -> None:
        super().__init__()
        self.norm_v = nn.LayerNorm(width)
        self.norm_t = nn.LayerNorm(width)
        self.project_v = nn.Linear(width, rank, bias=False)
        self.project_t = nn.Linear(width, rank, bias=False)
        self.conv = nn.Conv2d(2 * rank + 1 + _TIME_FEATURES, 1, 3, padding=1)
        self.seam = nn.Sequential(nn.Linear(2 * width, width // 4), nn.GELU(), nn.Linear(width // 4, width))
        self.g = nn.Parameter(torch.zeros(()))
        self.r = nn.Parameter(torch.zeros(()))

    def gate(self, f_v: Tensor, f_t: Tensor, mask: Tensor, grid: Grid, progress: float | Tensor) -> Tensor:
        """G [..., N, 1], exactly 0 or 1 where the mask is.

        Args:
            f_v, f_t: [..., N, I]; mask: [..., N, 1]; progress: a number, or [..., 1, 1].
        """
        features = [self.project_v(self.norm_v(f_v)), self.project_t(self.norm_t(f_t)), mask.to(f_v)]
        time = _time_features(progress, f_v).expand(*f_v.shape[:-1], -1)
        stacked = torch.cat([*features, time], dim=-1)  # [..., N, 2r + 1 + 8]
        shift = self.conv(stacked.mT.unflatten(-1, (grid.height, grid.width)))  # [..., 1, h, w]
        shift = shift.flatten(-3)[..., None].float()  # [..., N, 1]
        return torch.sigmoid(torch.logit(mask.float()) + torch.tanh(self.g) * shift).to(f_v)

    def seam_term(self, f_v: Tensor, f_t: Tensor, mask: Tensor) -> Tensor:
        """[..., N, I] x 2 and [..., N, 1] -> [..., N, I], zero where the mask is 0 or 1."""
        return torch.tanh(self.r) * self.seam(torch.cat([f_v, f_t], -1)) * (4 * mask * (1 - mask)).to(f_v)


def _time_features(progress: float | Tensor, like: Tensor) -> Tensor:
    """tau(t): sines and cosines of progress, a number or [..., 1, 1], at octaves of pi: [8] or [..., 1, 8]."""
    if isinstance(progress, Tensor):
        octaves = math.pi * 2.0 ** torch.arange(_TIME_FEATURES // 2, device=progress.device)
        angles = progress.float() * octaves
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).to(like)
    angles = [math.pi * progress * 2**octave for octave in range(_TIME_FEATURES // 2)]
    return torch.tensor([f(a) for a in angles for f in (math.sin, math.cos)], dtype=like.dtype, device=like.device)


class TextConsistency(nn.Module):
    """TCA of one site: low-rank changes of W_k and W_v for the text; zero at initialisation."""

    def __init__(self, context: int, width: int, rank: int = 16) -> None:
        super().__init__()
        self.k_down, self.k_up = nn.Linear(context, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.v_down, self.v_up = nn.Linear(context, rank, bias=False), nn.Linear(rank, width, bias=False)
        for up in (self.k_up, self.v_up):
            nn.init.zeros_(up.weight)

    def forward(self, q: Tensor, context: Tensor, k: Tensor, v: Tensor, heads: int, weight: float) -> Tensor:
        """F_t: text attention with weight * delta W; all with the same leading sides.

        Args:
            q: [..., n, I]; context: [..., L, D]; k, v: [..., L, I] of the base.

        Returns:
            [..., n, I]
        """
        k = k + weight * self.k_up(self.k_down(context))
        v = v + weight * self.v_up(self.v_down(context))
        return attend(q, k, v, heads)


def blend(f_v: Tensor, f_t: Tensor, gate: Tensor) -> Tensor:
    """F = G F_v + (1 - G) F_t, all [..., N, I] with gate [..., N, 1]."""
    return torch.lerp(f_t, f_v, gate.to(f_v).expand_as(f_v))


def join_pathways(
    f_v: Tensor, f_t: Tensor, mask: Tensor, ffb: FeatureBlending | None, grid: Grid, progress: float | Tensor
) -> Tensor:
    """F of both pathways, differentiable: by the trained gate and seam term, or by the mask where there is no FFB.

    Args:
        f_v, f_t: identity and text pathway [..., N, I]; mask: [..., N, 1] of the site's grid.
        progress: a number, or [..., 1, 1].

    Returns:
        [..., N, I]
    """
    if ffb is None:
        return blend(f_v, f_t, mask)
    return blend(f_v, f_t, ffb.gate(f_v, f_t, mask, grid, progress)) + ffb.seam_term(f_v, f_t, mask)
