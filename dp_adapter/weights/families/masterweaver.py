"""MasterWeaver files (SD1.5): ``id_encoder.*`` and ``adapter_modules.N.to_{k,v}_img.weight``.

Source: csyxwei/MasterWeaver@a77535c ``masterweaver/pipeline.py`` (Apache-2.0).
"""

from __future__ import annotations

import torch

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.projection_figures import IDResampler
from dp_adapter.core.types import Features, Tokens
from dp_adapter.weights.checkpoint import Checkpoint, TokenOptions, given
from dp_adapter.weights.families.ip_adapter import load_projection, site_from, under
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.site_layers import layers

PHOTOS = 3
"""As many photos the model was trained with; missing ones are tokens of the black picture."""


def recognise(file: WeightFile) -> bool:
    return "id_encoder.final_attn.to_q.weight" in file.tensors and "ip_adapter.1.to_k_img.weight" in file.tensors


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = load_projection(IDResampler.like, under(file.tensors, "id_encoder."), file)
    context = net.norm_out.normalized_shape[0]
    sites = [site_from(k, v) for k, v in layers(file, "ip_adapter", ("to_k_img", "to_v_img"), context, "sd15")]
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base="sd15",
        adapter=Adapter(net, sites),
        encoders=("clip-parsed",),
        recipe=_tokens,
        tokens_per_photo=net.latents.shape[1],
        features_width={"clip-parsed": net.proj_in.in_features},
        combine="concatenate",
        most_photos=PHOTOS,
    )


def _tokens(adapter: Adapter, features: Features, _options: TokenOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, IDResampler)
    width = net.proj_in.in_features
    x = given(features.clip_hidden, "CLIP hidden states of the parsed face", width)
    black = net(given(features.clip_hidden_uncond, "CLIP hidden states of a black picture", width)[:1])  # [1, Q, D]
    groups = max(PHOTOS, len(x))
    cond = torch.cat([net(x), black.expand(groups - len(x), -1, -1)])
    return Tokens(cond.flatten(0, 1), black.expand(groups, -1, -1).flatten(0, 1))
