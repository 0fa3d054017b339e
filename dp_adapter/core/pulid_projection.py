"""PuLID's networks from a face and EVA02-CLIP's features to identity tokens, module names as in its checkpoints.

Both are rebuilt from the shapes of a state dict. Source: ToTheBeginning/PuLID@1aa2fc7 ``pulid/encoders.py`` (IDEncoder,
v1) and ``pulid/encoders_transformer.py`` (IDFormer, v1.1).

Shapes: n photos, e width of ArcFace's and EVA's vectors together, S hidden states of L tokens of width c (the first is
the class token), T identity tokens, D width of the text context.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dp_adapter.core.projection import PerceiverAttention, State, feed_forward

SCALES = 5  # hidden states, each with a mapping of its own


class IdEncoder(nn.Module):
    """PuLID v1, each photo by itself: [n, e] and [n, S, L, c] -> [n, T, D]; T is 5 and one a hidden state."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.context = state["mapping_0.6.weight"].shape[0]
        self.body = _mlp(state, "body.")
        for number in range(SCALES):
            self.add_module(f"mapping_{number}", _mlp(state, f"mapping_{number}."))
            self.add_module(f"mapping_patch_{number}", _mlp(state, f"mapping_patch_{number}."))

    @classmethod
    def like(cls, state: State) -> IdEncoder:
        return cls(state)

    @property
    def tokens(self) -> int:
        """T."""
        return _out(self.body) // self.context + SCALES

    @property
    def face_width(self) -> int:
        """e."""
        return _in(self.body)

    @property
    def hidden_width(self) -> int:
        """c."""
        return _in(self.get_submodule("mapping_0"))

    def forward(self, face: Tensor, hidden: Tensor) -> Tensor:
        tokens = [self.body(face).unflatten(-1, (-1, self.context))]  # [n, T - S, D]
        for number in range(SCALES):
            whole, patches = hidden[:, number, :1], hidden[:, number, 1:]
            mapped = self.get_submodule(f"mapping_patch_{number}")(patches).mean(1, keepdim=True)
            tokens.append(self.get_submodule(f"mapping_{number}")(whole) + mapped)  # [n, 1, D]
        return torch.cat(tokens, 1)


class IdFormer(nn.Module):
    """PuLID v1.1: all photos of a person together, [n, e] and [n, S, L, c] -> [T, D], whatever n is."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty_like(state["latents"], dtype=torch.float32))  # [1, T, width]
        self.proj_out = nn.Parameter(torch.empty_like(state["proj_out"], dtype=torch.float32))  # [width, D]
        self.id_embedding_mapping = _mlp(state, "id_embedding_mapping.")
        for number in range(SCALES):
            self.add_module(f"mapping_{number}", _mlp(state, f"mapping_{number}."))
        width = self.latents.shape[-1]
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
        if depth % SCALES:
            raise ValueError(f"{depth} layers cannot be shared among {SCALES} hidden states")
        inner, wide = state["layers.0.0.to_q.weight"].shape[0], state["layers.0.1.1.weight"].shape[0]
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, inner), feed_forward(width, wide)]) for _ in range(depth)
        )

    @classmethod
    def like(cls, state: State) -> IdFormer:
        return cls(state)

    @property
    def tokens(self) -> int:
        """T."""
        return self.latents.shape[1]

    @property
    def face_width(self) -> int:
        """e."""
        return _in(self.id_embedding_mapping)

    @property
    def hidden_width(self) -> int:
        """c."""
        return _in(self.get_submodule("mapping_0"))

    def forward(self, face: Tensor, hidden: Tensor) -> Tensor:
        width = self.latents.shape[-1]
        own = self.id_embedding_mapping(face).reshape(1, -1, width)  # [1, n * tokens of the face, width]
        latents = torch.cat([self.latents, own], 1)
        each = len(self.layers) // SCALES
        for number in range(SCALES):
            seen = hidden[:, number].flatten(0, 1)[None]  # [1, n * L, c]
            x = torch.cat([own, self.get_submodule(f"mapping_{number}")(seen)], 1)
            for layer in list(self.layers)[number * each : (number + 1) * each]:
                attention, forward = layer.children()
                latents = attention(x, latents) + latents
                latents = forward(latents) + latents
        return latents[0, : self.tokens] @ self.proj_out


def _mlp(state: State, prefix: str) -> nn.Sequential:
    """Linear, normalisation and LeakyReLU twice, and a last linear layer."""
    first, second, last = (state[f"{prefix}{number}.weight"] for number in (0, 3, 6))
    return nn.Sequential(
        nn.Linear(first.shape[1], first.shape[0]),
        nn.LayerNorm(first.shape[0]),
        nn.LeakyReLU(),
        nn.Linear(second.shape[1], second.shape[0]),
        nn.LayerNorm(second.shape[0]),
        nn.LeakyReLU(),
        nn.Linear(last.shape[1], last.shape[0]),
    )


def _in(mlp: nn.Module) -> int:
    return mlp.get_parameter("0.weight").shape[1]


def _out(mlp: nn.Module) -> int:
    return mlp.get_parameter("6.weight").shape[0]
