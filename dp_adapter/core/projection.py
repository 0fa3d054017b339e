"""Networks that turn an encoder's features into identity tokens, module names as in the public checkpoints.

All are rebuilt from the shapes of a state dict; the file says how wide they are, nothing is assumed. Sources:
tencent-ailab/IP-Adapter@62e4af9 ``ip_adapter/{ip_adapter,resampler,ip_adapter_faceid}.py``.

Shapes: n photos, T identity tokens, D width of the text context.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dp_adapter.core.attention import attend

State = Mapping[str, Tensor]

HEAD_DIM = 64  # of every public resampler and perceiver but PhotoMaker's


def strip_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors whose key starts with ``prefix``, under the rest of their key."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def count_layers(state: State, prefix: str) -> int:
    """How many layers there are, whatever their numbers say."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})


class ImageProjection(nn.Module):
    """CLIP image embedding [n, c] -> [n, T, D] (IP-Adapter)."""

    def __init__(self, width: int, tokens: int, context: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, tokens * context)
        self.norm = nn.LayerNorm(context)

    @classmethod
    def like(cls, state: State) -> ImageProjection:
        context = state["norm.weight"].shape[0]
        return cls(state["proj.weight"].shape[1], state["proj.weight"].shape[0] // context, context)

    def forward(self, image_embeds: Tensor) -> Tensor:
        context = self.norm.normalized_shape[0]
        return self.norm(self.proj(image_embeds).unflatten(-1, (-1, context)))


class FullProjection(nn.Module):
    """Every CLIP token [n, T, c] -> [n, T, D] (IP-Adapter full-face)."""

    def __init__(self, width: int, inner: int, context: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, context), nn.LayerNorm(context))

    @classmethod
    def like(cls, state: State) -> FullProjection:
        inner, width = state["proj.0.weight"].shape
        return cls(width, inner, state["proj.2.weight"].shape[0])

    def forward(self, clip_hidden: Tensor) -> Tensor:
        return self.proj(clip_hidden)


class FaceProjection(nn.Module):
    """Face embedding [n, e] -> [n, T, D] (FaceID; also this project's own adapters)."""

    def __init__(self, width: int, inner: int, tokens: int, context: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, tokens * context))
        self.norm = nn.LayerNorm(context)

    @classmethod
    def like(cls, state: State) -> FaceProjection:
        inner, width = state["proj.0.weight"].shape
        context = state["norm.weight"].shape[0]
        return cls(width, inner, state["proj.2.weight"].shape[0] // context, context)

    def forward(self, faceid: Tensor) -> Tensor:
        context = self.norm.normalized_shape[0]
        return self.norm(self.proj(faceid).unflatten(-1, (-1, context)))


class PerceiverAttention(nn.Module):
    """Latents attend to features and to themselves."""

    def __init__(self, width: int, inner: int, head_dim: int = HEAD_DIM) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self._heads = inner // head_dim

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x: [n, L, width], latents: [n, Q, width] -> [n, Q, width]"""
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], dim=-2)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(latents), k, v, self._heads))


class Perceiver(nn.Module):
    """The layers that Resampler and FaceID-Plus share: features [n, L, c], latents [n, Q, width] -> [n, Q, D]."""

    def __init__(self, state: State, head_dim: int = HEAD_DIM) -> None:
        super().__init__()
        width, features = state["proj_in.weight"].shape
        out = state["proj_out.weight"].shape[0]
        depth = count_layers(state, "layers.")
        inner, hidden = state["layers.0.0.to_q.weight"].shape[0], state["layers.0.1.1.weight"].shape[0]
        self.proj_in = nn.Linear(features, width)
        self.proj_out = nn.Linear(width, out)
        self.norm_out = nn.LayerNorm(out)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, inner, head_dim), feed_forward(width, hidden)])
            for _ in range(depth)
        )

    def refine(self, features: Tensor, latents: Tensor) -> Tensor:
        x = self.proj_in(features)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = attention(x, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """What follows each attention of a perceiver: [..., width] -> [..., width]."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False)
    )


class Resampler(Perceiver):
    """Features [n, L, c] -> [n, Q, D] by learned latents (IP-Adapter plus; InstantID with L = 1)."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.latents = nn.Parameter(torch.empty_like(state["latents"], dtype=torch.float32))

    @classmethod
    def like(cls, state: State) -> Resampler:
        return cls(state)

    def forward(self, features: Tensor) -> Tensor:
        return self.refine(features, self.latents.expand(len(features), -1, -1))


class FacePlusProjection(nn.Module):
    """Face embedding [n, e] and CLIP hidden states [n, L, c] -> [n, T, D] (FaceID-Plus).

    v1 returns what the perceiver makes of the face tokens; v2 adds it to them (``shortcut``), times ``structure``.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        face = FaceProjection.like({key: value for key, value in state.items() if not key.startswith("perceiver")})
        self.proj = face.proj
        self.norm = face.norm
        self.perceiver_resampler = Perceiver(strip_prefix(state, "perceiver_resampler."))

    @classmethod
    def like(cls, state: State) -> FacePlusProjection:
        return cls(state)

    def forward(self, faceid: Tensor, clip_hidden: Tensor, shortcut: bool, structure: float = 1.0) -> Tensor:
        tokens = self.norm(self.proj(faceid).unflatten(-1, (-1, self.norm.normalized_shape[0])))
        refined = self.perceiver_resampler.refine(clip_hidden, tokens)
        return tokens + structure * refined if shortcut else refined
