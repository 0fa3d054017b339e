"""PhotoMaker's identity encoder: photos -> embeddings for the tokens of a word (arXiv 2312.04461).

Source: TencentARC/PhotoMaker@060b4fc ``photomaker/{model,model_v2,resampler}.py``; parameter names are theirs.
Shapes: n photos, T embeddings per photo (v1 one, v2 two), D width of the text context.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dp_adapter.core.clip_tower import VisionTower, in_float
from dp_adapter.core.projection import Perceiver
from dp_adapter.core.text.fusion import FuseModule

State = Mapping[str, Tensor]
_HEAD_DIM = 128  # of v2's perceiver


class FacePerceiver(nn.Module):
    """v2: face embedding [n, e] and the tower's last hidden state [n, L, c] -> [n, T, D]."""

    def __init__(self, state: State) -> None:
        super().__init__()
        hidden, face = state["token_proj.0.weight"].shape
        outputs, context = state["token_proj.2.weight"].shape[0], state["token_norm.weight"].shape[0]
        self.token_proj = nn.Sequential(nn.Linear(face, hidden), nn.GELU(), nn.Linear(hidden, outputs))
        self.token_norm = nn.LayerNorm(context)
        self.perceiver_resampler = Perceiver(under(state, "perceiver_resampler."), _HEAD_DIM)
        self.face, self.tokens = face, outputs // context

    def forward(self, faceid: Tensor, hidden: Tensor) -> Tensor:
        tokens = self.token_norm(self.token_proj(faceid).unflatten(-1, (self.tokens, -1)))
        return tokens + self.perceiver_resampler.refine(hidden, tokens)


class PhotoMakerEncoder(nn.Module):
    """The ``id_encoder`` of a file, v1 or v2 by its keys.

    v2 files keep v1's two projections, which v2 does not use.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.vision_model = VisionTower(under(state, "vision_model."))
        self.visual_projection = _projection(state["visual_projection.weight"])
        self.visual_projection_2 = _projection(state["visual_projection_2.weight"])
        self.fuse_module = FuseModule(under(state, "fuse_module."))
        perceiver = under(state, "qformer_perceiver.")
        self.qformer_perceiver = FacePerceiver(perceiver) if perceiver else None

    @classmethod
    def like(cls, state: State) -> PhotoMakerEncoder:
        return cls(state)

    @property
    def context(self) -> int:
        """D"""
        return self.fuse_module.context

    @property
    def tokens(self) -> int:
        """T"""
        return 1 if self.qformer_perceiver is None else self.qformer_perceiver.tokens

    def embed(self, pixels: Tensor, faceid: Tensor | None) -> Tensor:
        """Pixels [n, 3, s, s], and face embeddings [n, e] for v2 -> [n, T, D]."""
        hidden, pooled = self.vision_model(pixels)
        if self.qformer_perceiver is None:
            projections = (self.visual_projection, self.visual_projection_2)
            return torch.cat([in_float(one, pooled) for one in projections], dim=-1)[:, None]
        assert faceid is not None
        return in_float(self.qformer_perceiver, faceid, hidden)


def _projection(weight: Tensor) -> nn.Linear:
    return nn.Linear(weight.shape[1], weight.shape[0], bias=False)


def under(state: State, prefix: str) -> dict[str, Tensor]:
    """Tensors whose key starts with ``prefix``, under the rest of the key."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
