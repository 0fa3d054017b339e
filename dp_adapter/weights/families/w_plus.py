"""W+ adapter files (SD1.5): ``w_proj.*`` and ``wplus_adapter.N.to_{k,v,q}_wplus.weight``.

Source: csxmli2016/w-plus-adapter@c649408 ``w_plus_adapter/w_plus_adapter.py`` (S-Lab License 1.0, non-commercial).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dp_adapter.core.adapter import Adapter, TextQuerySiteAdapter
from dp_adapter.core.projection_figures import WPlusProjection
from dp_adapter.core.types import Features, Tokens
from dp_adapter.weights.checkpoint import Checkpoint, TokenOptions, given
from dp_adapter.weights.families.ip_adapter import load_projection, under
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.site_layers import layers
from dp_adapter.weights.w_plus_latents import LATENT

_NAMES = ("to_k_wplus", "to_v_wplus", "to_q_wplus")


def recognise(file: WeightFile) -> bool:
    return "w_proj.proj_0.weight" in file.tensors and "wplus_adapter.1.to_q_wplus.weight" in file.tensors


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = load_projection(WPlusProjection.like, under(file.tensors, "w_proj."), file)
    context = net.norm.normalized_shape[0]
    sites = [_site(*weights) for weights in layers(file, "wplus_adapter", _NAMES, context, "sd15")]
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base="sd15",
        adapter=Adapter(net, sites),
        encoders=("w-plus",),
        recipe=_tokens,
        tokens_per_photo=4,
        features_width={"w-plus": LATENT[1]},
        mode="text_query",
    )


def _site(k: Tensor, v: Tensor, q: Tensor) -> TextQuerySiteAdapter:
    """A site whose weights are the file's own tensors, not copies."""
    with torch.device("meta"):
        site = TextQuerySiteAdapter(k.shape[1], k.shape[0])
    site.load_state_dict({"to_k.weight": k, "to_v.weight": v, "to_q.weight": q}, assign=True)
    return site.eval().requires_grad_(False)


def _tokens(adapter: Adapter, features: Features, _options: TokenOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, WPlusProjection)
    x = given(features.w_plus, "latents of StyleGAN2", LATENT[1])
    return Tokens(net(x).flatten(0, 1), net(torch.zeros_like(x)).flatten(0, 1))
