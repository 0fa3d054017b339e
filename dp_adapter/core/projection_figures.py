"""Networks of StoryMaker, MasterWeaver and the W+ adapter, module names as in their files, sizes from the shapes.

Written from the mathematics of RedAIGC/StoryMaker@a7ce766 ``ip_adapter/ip_adapter_faceid.py`` (no licence file),
csyxwei/MasterWeaver@a77535c ``masterweaver/resampler.py`` (Apache-2.0) and csxmli2016/w-plus-adapter@c649408
``w_plus_adapter/w_plus_adapter.py`` (S-Lab 1.0, non-commercial).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dp_adapter.core.attention import attend
from dp_adapter.core.projection import HEAD_DIM, FacePlusProjection, Perceiver, Resampler, State

_STYLE_GROUPS = ((0, 4), (4, 8), (8, 12), (12, 18))
"""Layers of StyleGAN2 at 1024 px that one token each is made of: coarse to fine."""


class StoryMakerProjection(FacePlusProjection):
    """Persons -> one group of tokens for the background and one for each of them.

    A person's group is made of their face and figure alone; its place among the persons is a learned embedding.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.resample = Resampler(
            {key.removeprefix("resample."): value for key, value in state.items() if key.startswith("resample.")}
        )
        context = state["proj_out.weight"].shape[0]
        self.proj_out = nn.Linear(context, context)
        self.norm_out = nn.LayerNorm(context)
        self.pos_embed = nn.Parameter(torch.empty_like(state["pos_embed"], dtype=torch.float32))
        self.bg_embed = nn.Parameter(torch.empty_like(state["bg_embed"], dtype=torch.float32))

    @classmethod
    def like(cls, state: State) -> StoryMakerProjection:
        return cls(state)

    @property
    def most_persons(self) -> int:
        return self.pos_embed.shape[0]

    def persons(self, faceid: Tensor, face: Tensor, figure: Tensor, first: int = 0, structure: float = 1.0) -> Tensor:
        """
        Args:
            faceid: [p, e]; face, figure: CLIP's hidden states of the aligned faces and of the cut-out persons,
                [p, L, c]; first: place of the first of them among all persons; structure: weight of the face's CLIP
                part.

        Returns:
            [1 + p, T, D], the background's group first.
        """
        groups = torch.cat([self.forward(faceid, face, True, structure), self.resample(figure)], dim=1)  # [p, T, D]
        groups = groups + self.pos_embed[first : first + len(groups)]
        return torch.cat([self.bg_embed, groups + self.norm_out(self.proj_out(groups))])


class IDResampler(Perceiver):
    """MasterWeaver: CLIP's hidden states of a face [n, L, c] -> [n, Q, D].

    Unlike in the other resamplers the attention's result goes on through the feed-forward only, and the tokens attend
    to one another once more at the end.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.latents = nn.Parameter(torch.empty_like(state["latents"], dtype=torch.float32))
        self.final_attn = ResamplerAttention(*reversed(state["final_attn.to_q.weight"].shape))

    @classmethod
    def like(cls, state: State) -> IDResampler:
        return cls(state)

    def forward(self, clip_hidden: Tensor) -> Tensor:
        x = self.proj_in(clip_hidden)
        latents = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = feed_forward(attention(x, latents)) + latents
        tokens = self.norm_out(self.proj_out(latents))
        return tokens + self.final_attn(tokens)


class ResamplerAttention(nn.Module):
    """Tokens attend to themselves, normed twice: one norm for the queries, one for keys and values."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, Q, D] -> [n, Q, D]"""
        k, v = self.to_kv(self.norm1(x)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(self.norm2(x)), k, v, self.to_q.out_features // HEAD_DIM))


class WPlusProjection(nn.Module):
    """StyleGAN2's latents [n, 18, 512] -> [n, 4, D]."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for index in range(len(_STYLE_GROUPS)):
            context, width = state[f"proj_{index}.weight"].shape
            self.add_module(f"proj_{index}", nn.Linear(width, context, bias=False))
        self.norm = nn.LayerNorm(state["norm.weight"].shape[0])

    @classmethod
    def like(cls, state: State) -> WPlusProjection:
        return cls(state)

    def forward(self, w_plus: Tensor) -> Tensor:
        tokens = [
            self.get_submodule(f"proj_{index}")(w_plus[:, start:stop].flatten(1))
            for index, (start, stop) in enumerate(_STYLE_GROUPS)
        ]
        return self.norm(torch.stack(tokens, dim=1))
