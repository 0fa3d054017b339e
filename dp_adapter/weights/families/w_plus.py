"""W+ adapter files (SD1.5): ``w_proj.*`` and ``wplus_adapter.N.to_{k,v,q}_wplus.weight``.

Source: csxmli2016/w-plus-adapter@c649408 ``w_plus_adapter/w_plus_adapter.py`` (S-Lab License 1.0, non-commercial);
parameter names are theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, TextQuerySiteAdapter
from dp_adapter.core.projection import State, strip_prefix
from dp_adapter.core.types import Features, Tokens
from dp_adapter.weights.build_modules import assign_weights, build_projection
from dp_adapter.weights.checkpoint import Checkpoint, RecipeOptions, require
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.site_layers import read_layers
from dp_adapter.weights.w_plus_latents import LATENT

_NAMES = ("to_k_wplus", "to_v_wplus", "to_q_wplus")
_STYLE_GROUPS = ((0, 4), (4, 8), (8, 12), (12, 18))
"""Layers of StyleGAN2 at 1024 px that one token each is made of: coarse to fine."""


class WPlusProjection(nn.Module):
    """StyleGAN2's latents [n, 18, 512] -> [n, 4, D]."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for index in range(len(_STYLE_GROUPS)):
            context, width = state[f"proj_{index}.weight"].shape
            self.add_module(f"proj_{index}", nn.Linear(width, context, bias=False))
        self.norm = nn.LayerNorm(state["norm.weight"].shape[0])

    def forward(self, w_plus: Tensor) -> Tensor:
        tokens = [
            self.get_submodule(f"proj_{index}")(w_plus[:, start:stop].flatten(1))
            for index, (start, stop) in enumerate(_STYLE_GROUPS)
        ]
        return self.norm(torch.stack(tokens, dim=1))


def recognise(file: WeightFile) -> bool:
    return "w_proj.proj_0.weight" in file.tensors and "wplus_adapter.1.to_q_wplus.weight" in file.tensors


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(WPlusProjection, strip_prefix(file.tensors, "w_proj."), file)
    context = net.norm.normalized_shape[0]
    sites = [_build_site(*weights) for weights in read_layers(file, "wplus_adapter", _NAMES, context, "sd15")]
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base="sd15",
        adapter=Adapter(net, sites),
        encoders=("w-plus",),
        recipe=_make_tokens,
        tokens_per_photo=4,
        features_width={"w-plus": LATENT[1]},
        mode="text_query",
    )


def _build_site(k: Tensor, v: Tensor, q: Tensor) -> TextQuerySiteAdapter:
    """A site whose weights are the file's own tensors, not copies."""
    state = {"to_k.weight": k, "to_v.weight": v, "to_q.weight": q}
    return assign_weights(lambda _: TextQuerySiteAdapter(k.shape[1], k.shape[0]), state)


def _make_tokens(adapter: Adapter, features: Features, _options: RecipeOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, WPlusProjection)
    x = require(features.w_plus, "latents of StyleGAN2", LATENT[1])
    return Tokens(net(x).flatten(0, 1), net(torch.zeros_like(x)).flatten(0, 1))
