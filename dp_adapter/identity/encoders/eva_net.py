"""EVA02-CLIP's image tower, in torch alone.

A pre-norm vision transformer with rotary positions on the patches, a gated (SwiGLU) feed-forward and a normalisation
inside both of its halves (Sun et al., EVA-CLIP, arXiv 2303.15389; Fang et al., EVA-02, arXiv 2303.11331). Parameter
names as in QuanSun/EVA-CLIP; held to the official code by ``tests/identity/encoders/test_eva.py``.

Shapes: n pictures, L tokens (the class token, then the patches by rows), W width, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = (4, 8, 12, 16, 20)  # PuLID takes what comes out of this many blocks
_EPS = 1e-6
_TRAINED_SIDE = 16  # positions are in patches of 224 px pictures, which the tower was trained on first
_THETA = 10000.0


@dataclass(frozen=True)
class EvaShape:
    """Sizes of a tower.

    Attributes:
        width: W; inner: of the feed-forward; depth: blocks; head: width d of an attention head.
        patch: side of a patch in px; side: patches in a row; output: width of the image embedding.
    """

    width: int
    inner: int
    depth: int
    head: int
    patch: int
    side: int
    output: int

    @property
    def pixels(self) -> int:
        """Side of the pictures it takes."""
        return self.side * self.patch

    @property
    def tokens(self) -> int:
        """Patches and the class token, L."""
        return self.side**2 + 1


class EvaTower(nn.Module):
    """Pictures [n, 3, s, s] -> image embeddings [n, output], and what comes out of `HIDDEN` blocks [n, 5, L, W]."""

    def __init__(self, shape: EvaShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, shape.width, shape.patch, shape.patch)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.empty(1, shape.tokens, shape.width))
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, _EPS)
        self.head = nn.Linear(shape.width, shape.output)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.patch_embed["proj"](pixels).flatten(2).mT  # [n, L - 1, W]
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        turn = rotary_angles(self.shape.side, self.shape.head).to(x.device)
        hidden: list[Tensor] = []
        for done, block in enumerate(self.blocks):
            if done in HIDDEN:
                hidden.append(x)
            x = block(x, turn)
        return self.head(self.norm(x)[:, 0]), torch.stack(hidden, 1)


class _Block(nn.Module):
    def __init__(self, shape: EvaShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, _EPS)
        self.attn = _Attention(shape)
        self.norm2 = nn.LayerNorm(shape.width, _EPS)
        self.mlp = _SwiGLU(shape)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), turn)
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Keys have no bias, as in the weights."""

    def __init__(self, shape: EvaShape) -> None:
        super().__init__()
        width = shape.width
        self.heads = width // shape.head
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.inner_attn_ln = nn.LayerNorm(width, _EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        parts = self.q_proj(x) + self.q_bias, self.k_proj(x), self.v_proj(x) + self.v_bias
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # [n, heads, L, d]
        attended = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v)
        return self.proj(self.inner_attn_ln(attended.transpose(1, 2).flatten(2)))


class _SwiGLU(nn.Module):
    def __init__(self, shape: EvaShape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.width, shape.inner)
        self.w2 = nn.Linear(shape.width, shape.inner)
        self.ffn_ln = nn.LayerNorm(shape.inner, _EPS)
        self.w3 = nn.Linear(shape.inner, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


def rotary_angles(side: int, head: int) -> Tensor:
    """Cosines and sines of the patches' angles, [2, side * side, d / 2]; rows in the first half, columns in the second.

    Su et al. (RoFormer, arXiv 2104.09864) along both axes.
    """
    rates = _THETA ** -(torch.arange(0, head // 2, 2, dtype=torch.float32) / (head // 2))  # [d / 4]
    places = torch.arange(side, dtype=torch.float32) / side * _TRAINED_SIDE
    angles = places[:, None] * rates  # [side, d / 4]
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    both = torch.cat([rows, columns], -1).flatten(0, 1)
    return torch.stack([both.cos(), both.sin()])


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Queries or keys [n, heads, L, d], neighbouring pairs turned; the class token stays. In float32 inside."""
    patches = x[:, :, 1:].float()
    first, second, (cos, sin) = patches[..., ::2], patches[..., 1::2], turn
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
    return torch.cat([x[:, :, :1], turned.to(x)], 2)
