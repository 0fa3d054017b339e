"""Fusing identity embeddings into the tokens of a word (PhotoMaker, arXiv 2312.04461; ConsistentID, arXiv 2404.16771).

Sources: TencentARC/PhotoMaker@060b4fc ``photomaker/model.py``, JackAILab/ConsistentID@e234008 ``attention.py``; both
have the same module, and parameter names are theirs. Shapes: L text tokens, k fused ones, D width of the text context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dp_adapter.core.clip_tower import in_float
from dp_adapter.core.text.text_side import Fuse

State = Mapping[str, Tensor]


class _MLP(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(self.layernorm(x))))


class FuseModule(nn.Module):
    """Text tokens [k, D] and identity embeddings [k, D] -> fused tokens [k, D]."""

    def __init__(self, state: State) -> None:
        super().__init__()
        context = state["layer_norm.weight"].shape[0]
        self.mlp1 = _MLP(2 * context, state["mlp1.fc1.weight"].shape[0], context)
        self.mlp2 = _MLP(context, state["mlp2.fc1.weight"].shape[0], context)
        self.layer_norm = nn.LayerNorm(context)

    @property
    def context(self) -> int:
        """D"""
        return self.layer_norm.normalized_shape[0]

    def forward(self, words: Tensor, embeds: Tensor) -> Tensor:
        x = self.mlp1(torch.cat([words, embeds], dim=-1)) + words
        return self.layer_norm(self.mlp2(x) + x)


def fuse_with(module: FuseModule, embeds: Tensor) -> Fuse:
    """What puts the embeddings [k, D] into the first k tokens of the person's word, one each.

    Where the prompt has fewer of its tokens (a chunk ends), the last embeddings stay out, as in the official code.
    """

    def fuse(context: Tensor, positions: Sequence[int]) -> Tensor:
        chosen = list(positions)[: len(embeds)]
        if not chosen:
            return context
        changed = context.clone()
        words = context[chosen].to(embeds.device).float()
        with torch.no_grad():
            changed[chosen] = in_float(module, words, embeds[: len(chosen)]).to(context)
        return changed

    return fuse
