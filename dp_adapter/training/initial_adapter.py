"""The adapter that a training starts from: a new one for a UNet, or one read from a file.

Shapes: T identity tokens, D width of the text context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter, SiteAdapter
from dp_adapter.core.blend import FeatureBlending, TextConsistency
from dp_adapter.core.projection import HEAD_DIM, FacePlusProjection, FaceProjection, Resampler
from dp_adapter.errors import WeightsError
from dp_adapter.hosts.attach.diffusers import sites_of
from dp_adapter.training.unet.adapted_unet import Mode
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import Base, Encoder

WIDTHS: Mapping[Encoder, int] = {"sface": 128, "arcface": 512, "arcface-raw": 512, "transface": 512}
"""Encoders that an adapter can be trained for, and the width of what they give."""

_DEPTH, _FEED_FORWARD = 4, 4  # of FACT's resampler, as in its face_adapter/face_adapter_v1.py at 7bc7119
_BLENDING_RANK = 16


@dataclass(frozen=True)
class InitialAdapter:
    """An adapter to go on training, in float32, and what it is for."""

    adapter: Adapter
    base: Base
    encoder: Encoder
    mode: Mode


def new_adapter(
    unet: nn.Module,
    encoder: Encoder,
    kind: Mode = "add",
    tokens: int = 4,
    width: int | None = None,
) -> Adapter:
    """Makes a new adapter in float32, all of whose parameters take gradients.

    The identity's keys and values start as the text's own (tencent-ailab/IP-Adapter@62e4af9
    ``tutorial_train_faceid.py``); FACT's gates start without effect.

    Args:
        encoder: whose embedding (or, of TransFace, patches) makes the tokens.
        kind: ``add`` has keys and values at every site, ``gated`` FACT's self-attention.
        tokens: T; 4 in FaceID, 16 in FACT.
        width: of the encoder's output, where it is not the usual one.

    Raises:
        HostError: the UNet is neither SD1.5 nor SDXL.
        WeightsError: no adapter can be trained for the encoder.
    """
    if encoder not in WIDTHS:
        raise WeightsError(
            f"No adapter can be trained for the encoder '{encoder}'", f"Choose one of {', '.join(WIDTHS)}."
        )
    sites = [unet.get_submodule(f"{site.name}.attn2") for site in sites_of(unet)]
    context = _weight(sites[0], "to_k").shape[1]
    features = WIDTHS[encoder] if width is None else width
    projection: nn.Module
    if encoder == "transface":
        projection = new_resampler(features, tokens, context)
    else:
        projection = FaceProjection(features, 2 * features, tokens, context)
        with torch.no_grad():
            # A face's vector has length 1: times the root of its width each entry has variance 1, as a layer expects.
            projection.get_parameter("proj.0.weight").mul_(features**0.5)
    fresh = _make_gated_site if kind == "gated" else _make_site
    return Adapter(projection, [fresh(attn2) for attn2 in sites])


def add_pathways(adapter: Adapter, tca_rank: int = 0, ffb: bool = False) -> Adapter:
    """Adds TCA (for a rank above 0) and FFB at the sites that have none, for stages 2 and 3.

    Both start without effect, but a gate that can be trained starts from the mask itself, not from its power by level.
    """
    for index in range(len(adapter.sites)):
        site = adapter.site(index)
        if isinstance(site, GatedSiteAdapter):
            continue
        like = site.to_k.weight
        if tca_rank and site.text is None:
            site.text = TextConsistency(site.context, site.width, tca_rank).to(like)
        if ffb and site.blending is None:
            site.blending = FeatureBlending(site.width, _BLENDING_RANK).to(like)
    return adapter


def new_resampler(features: int, tokens: int, context: int) -> Resampler:
    """Patches [B, L, features] -> tokens [B, T, D], of FACT's depth; 1024 wide for SD1.5's D = 768, as there."""
    width = HEAD_DIM * max(1, round(context * 4 / 3 / HEAD_DIM))
    inner = HEAD_DIM * max(1, round(context / HEAD_DIM))
    shapes = {
        "latents": (1, tokens, width),
        "proj_in.weight": (width, features),
        "proj_out.weight": (context, width),
        "layers.0.1.1.weight": (_FEED_FORWARD * width, width),
        **{f"layers.{number}.0.to_q.weight": (inner, width) for number in range(_DEPTH)},
    }
    net = Resampler.like({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    net.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
    return net


def read_initial_adapter(path: Path) -> InitialAdapter:
    """Reads an adapter that a training can start from.

    Of IP-Adapter-FaceID-Plus it takes the part that reads the face embedding, without CLIP's; in v2 that part is a
    whole model. The LoRA inside FaceID files is left out, since training does not change the UNet.

    Raises:
        WeightsError: the file cannot be read, or its tokens are made of something that cannot be trained with.
    """
    checkpoint = formats.read(path)
    projection, encoder = checkpoint.adapter.projection, checkpoint.encoders[0]
    if isinstance(projection, FacePlusProjection):
        projection = _take_face_part(projection)
    trainable = isinstance(projection, FaceProjection) and encoder != "transface"
    trainable |= isinstance(projection, Resampler) and encoder == "transface"
    if not trainable or encoder not in WIDTHS:
        raise WeightsError(
            f"A training cannot start from {path.name}: {checkpoint.title} makes its tokens in another way",
            "Take FaceID, FaceID-Plus, FaceID-Portrait, FaceChain-FACT or a file of our own.",
        )
    sites = [checkpoint.adapter.site(index) for index in range(len(checkpoint.adapter.sites))]
    adapter = Adapter(projection, sites)
    for module in adapter.modules():
        for name, parameter in module.named_parameters(recurse=False):
            own = parameter.detach().float().clone()  # the file's memory is mapped
            setattr(module, name, nn.Parameter(own))
    mode: Mode = "gated" if isinstance(sites[0], GatedSiteAdapter) else "add"
    return InitialAdapter(adapter.train(), checkpoint.base, encoder, mode)


def _take_face_part(plus: FacePlusProjection) -> FaceProjection:
    state = {key: value for key, value in plus.state_dict().items() if not key.startswith("perceiver")}
    net = FaceProjection.like(state)
    net.load_state_dict(state)
    return net


def _weight(attn2: nn.Module, linear: str) -> Tensor:
    return cast(Tensor, attn2.get_submodule(linear).weight)


def _make_site(attn2: nn.Module) -> SiteAdapter:
    keys, values = _weight(attn2, "to_k"), _weight(attn2, "to_v")
    site = SiteAdapter(keys.shape[1], keys.shape[0])
    with torch.no_grad():
        site.to_k.weight.copy_(keys)
        site.to_v.weight.copy_(values)
    return site


def _make_gated_site(attn2: nn.Module) -> GatedSiteAdapter:
    width, context = _weight(attn2, "to_k").shape
    return GatedSiteAdapter(context, width, _FEED_FORWARD * width)
