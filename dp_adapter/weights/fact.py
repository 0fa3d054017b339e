"""FaceChain-FACT files: ``local_fac_prj.*`` and gated self-attention under diffusers' processor names."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter
from dp_adapter.core.projection import Resampler
from dp_adapter.core.types import Features, Tokens
from dp_adapter.errors import WeightsError
from dp_adapter.weights.checkpoint import SITES, Checkpoint, TokenOptions, given
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.ip_adapter import load_projection, under

_SITE = re.compile(r"((down|up|mid)_block.*)\.attn2\.processor\.(.+)")
_ORDER = {"down": 0, "up": 1, "mid": 2}


def recognise(file: WeightFile) -> bool:
    return "local_fac_prj.latents" in file.tensors and any("alpha_attn" in key for key in file.tensors)


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = load_projection(Resampler.like, under(file.tensors, "local_fac_prj."), file)
    sites: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.tensors.items():
        if match := _SITE.fullmatch(key):
            sites.setdefault(match[1], {})[match[3]] = tensor
    if len(sites) != SITES["sd15"]:
        raise WeightsError(f"{file.path.name} has {len(sites)} gated attention layers; SD1.5 needs {SITES['sd15']}")
    ordered = [_site(sites[name], name, file) for name in sorted(sites, key=_checkpoint_order)]
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base="sd15",
        adapter=Adapter(net, ordered),
        encoders=("transface",),
        recipe=_tokens,
        tokens_per_photo=net.latents.shape[1],
        features_width={"transface": net.proj_in.in_features},
        combine="concatenate",
        mode="gated",
    )


def _checkpoint_order(name: str) -> tuple[int, ...]:
    return _ORDER[name.split("_", maxsplit=1)[0]], *map(int, re.findall(r"\d+", name))


def _site(state: dict[str, Tensor], name: str, file: WeightFile) -> GatedSiteAdapter:
    try:
        width, context = state["linear.weight"].shape
        with torch.device("meta"):
            site = GatedSiteAdapter(context, width, state["ff.net.2.weight"].shape[1])
        site.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(f"{file.path.name}: layer {name} is incomplete ({str(error).splitlines()[-1]})") from error
    return site.eval().requires_grad_(False)


def _tokens(adapter: Adapter, features: Features, _options: TokenOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, Resampler)
    x = given(features.face_patches, "TransFace patch features", net.proj_in.in_features)
    return Tokens(net(x).flatten(0, 1), net(torch.zeros_like(x)).flatten(0, 1))
