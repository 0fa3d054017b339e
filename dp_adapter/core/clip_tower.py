"""CLIP's vision tower, for checkpoints that carry one of their own; module names are transformers'.

Weights stay as they lie in the file, half precision and mapped from disk; `in_float` computes in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dp_adapter.core.attention import attend
from dp_adapter.core.projection import count_layers

State = Mapping[str, Tensor]
_HEAD_DIM = 64
_LAYERS = "encoder.layers."


def in_float(module: nn.Module, *given: Tensor) -> Tensor:
    """A module's output with its parameters in float32, one module's at a time in memory."""
    floats = {name: value.float() for name, value in module.named_parameters()}
    return cast(Tensor, functional_call(module, floats, given))


class _Embeddings(nn.Module):
    def __init__(self, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(tokens, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [n, L - 1, c]
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self._heads = width // _HEAD_DIM

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self._heads))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # quick GELU, as OpenAI's towers


class _Layer(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = _Attention(width)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = _MLP(width, hidden)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionTower(nn.Module):
    """OpenAI's CLIP tower, sizes from a state dict: heads have 64 numbers, the activation is quick GELU.

    Attributes:
        image_size: side of its input in px.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
        tokens = state["embeddings.position_embedding.weight"].shape[0]
        depth = count_layers(state, _LAYERS)
        hidden = state[f"{_LAYERS}0.mlp.fc1.weight"].shape[0]
        self.embeddings = _Embeddings(width, patch, tokens)
        self.pre_layrnorm = nn.LayerNorm(width)  # transformers' spelling
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Layer(width, hidden) for _ in range(depth))})
        self.post_layernorm = nn.LayerNorm(width)
        self.image_size = round((tokens - 1) ** 0.5) * patch

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [n, 3, s, s] -> the last hidden state [n, L, c] and the class token's, normalised, [n, c]."""
        x = in_float(self.pre_layrnorm, in_float(self.embeddings, pixels.float()))
        layers = self.encoder["layers"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = in_float(layer, x)
        return x, in_float(self.post_layernorm, x[:, 0])
