"""MasterWeaver files (SD1.5): ``id_encoder.*`` and ``adapter_modules.N.to_{k,v}_img.weight``.

Source: csyxwei/MasterWeaver@a77535c ``masterweaver/{pipeline,resampler}.py`` (Apache-2.0); parameter names are theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.attention import attend
from dp_adapter.core.projection import HEAD_DIM, Perceiver, State, strip_prefix
from dp_adapter.core.types import Features, Tokens
from dp_adapter.weights.build_modules import build_projection, build_site
from dp_adapter.weights.checkpoint import Checkpoint, RecipeOptions, require
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.site_layers import read_layers

PHOTOS = 3
"""As many photos the model was trained with; missing ones are tokens of the black picture."""


class IDResampler(Perceiver):
    """CLIP's hidden states of a face [n, L, c] -> [n, Q, D].

    Unlike in the other resamplers the attention's result goes on through the feed-forward only, and the tokens attend
    to one another once more at the end.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.latents = nn.Parameter(torch.empty_like(state["latents"], dtype=torch.float32))
        self.final_attn = ResamplerAttention(*reversed(state["final_attn.to_q.weight"].shape))

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


def recognise(file: WeightFile) -> bool:
    return "id_encoder.final_attn.to_q.weight" in file.tensors and "ip_adapter.1.to_k_img.weight" in file.tensors


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(IDResampler, strip_prefix(file.tensors, "id_encoder."), file)
    context = net.norm_out.normalized_shape[0]
    sites = [build_site(k, v) for k, v in read_layers(file, "ip_adapter", ("to_k_img", "to_v_img"), context, "sd15")]
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base="sd15",
        adapter=Adapter(net, sites),
        encoders=("clip-parsed",),
        recipe=_make_tokens,
        tokens_per_photo=net.latents.shape[1],
        features_width={"clip-parsed": net.proj_in.in_features},
        combine="concatenate",
        most_photos=PHOTOS,
    )


def _make_tokens(adapter: Adapter, features: Features, _options: RecipeOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, IDResampler)
    width = net.proj_in.in_features
    x = require(features.clip_hidden, "CLIP hidden states of the parsed face", width)
    black = net(require(features.clip_hidden_uncond, "CLIP hidden states of a black picture", width)[:1])  # [1, Q, D]
    groups = max(PHOTOS, len(x))
    cond = torch.cat([net(x), black.expand(groups - len(x), -1, -1)])
    return Tokens(cond.flatten(0, 1), black.expand(groups, -1, -1).flatten(0, 1))
