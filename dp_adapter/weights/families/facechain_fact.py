"""FaceChain-FACT files: ``local_fac_prj.*`` and gated self-attention under diffusers' processor names.

Two versions are public: the released one (16 tokens a photo through a resampler), and an earlier one from the
repository's development branches (``adapter_maj_25.ckpt``: 196 tokens, a linear layer over the patches). That one gave
the unconditional row the same tokens as the conditional one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter
from dp_adapter.core.patch_projection import PatchProjection
from dp_adapter.core.projection import Resampler
from dp_adapter.core.types import Features, Tokens
from dp_adapter.errors import WeightsError
from dp_adapter.weights.checkpoint import SITES, Checkpoint, Recipe, TokenOptions, given
from dp_adapter.weights.families.ip_adapter import load_projection, under
from dp_adapter.weights.files import WeightFile

_SITE = re.compile(r"((down|up|mid)_block.*)\.attn2\.processor\.(.+)")
_ORDER = {"down": 0, "up": 1, "mid": 2}


def recognise(file: WeightFile) -> bool:
    return "local_fac_prj.latents" in file.tensors and _is_gated(file)


def recognise_first(file: WeightFile) -> bool:
    return "local_fac_prj.net.weight" in file.tensors and _is_gated(file)


def _is_gated(file: WeightFile) -> bool:
    return any("alpha_attn" in key for key in file.tensors)


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = load_projection(Resampler.like, under(file.tensors, "local_fac_prj."), file)
    return _checkpoint(file, family, title, net, resampled_tokens, net.latents.shape[1], net.proj_in.in_features)


def read_first(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = load_projection(PatchProjection.like, under(file.tensors, "local_fac_prj."), file)
    return _checkpoint(file, family, title, net, _first_tokens, net.tokens, net.width)


def _checkpoint(
    file: WeightFile, family: str, title: str, net: nn.Module, recipe: Recipe, tokens: int, width: int
) -> Checkpoint:
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base="sd15",
        adapter=Adapter(net, _sites(file)),
        encoders=("transface",),
        recipe=recipe,
        tokens_per_photo=tokens,
        features_width={"transface": width},
        combine="concatenate",
        mode="gated",
    )


def _sites(file: WeightFile) -> list[GatedSiteAdapter]:
    sites: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.tensors.items():
        if match := _SITE.fullmatch(key):
            sites.setdefault(match[1], {})[match[3]] = tensor
    if len(sites) != SITES["sd15"]:
        raise WeightsError(f"{file.path.name} has {len(sites)} gated attention layers; SD1.5 needs {SITES['sd15']}")
    return [gated_site(sites[name], name, file) for name in sorted(sites, key=_checkpoint_order)]


def _checkpoint_order(name: str) -> tuple[int, ...]:
    return _ORDER[name.split("_", maxsplit=1)[0]], *map(int, re.findall(r"\d+", name))


def gated_site(state: Mapping[str, Tensor], name: str | int, file: WeightFile) -> GatedSiteAdapter:
    """A layer whose weights are the file's own tensors. Raises WeightsError where it is incomplete."""
    try:
        width, context = state["linear.weight"].shape
        with torch.device("meta"):
            site = GatedSiteAdapter(context, width, state["ff.net.2.weight"].shape[1])
        site.load_state_dict(dict(state), strict=True, assign=True)
    except (RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(f"{file.path.name}: layer {name} is incomplete ({str(error).splitlines()[-1]})") from error
    return site.eval().requires_grad_(False)


def resampled_tokens(adapter: Adapter, features: Features, _options: TokenOptions) -> Tokens:
    """Tokens of TransFace's patches; uncond are those of zeros."""
    net = adapter.projection
    assert isinstance(net, Resampler)
    x = given(features.face_patches, "TransFace patch features", net.proj_in.in_features)
    return Tokens(net(x).flatten(0, 1), net(torch.zeros_like(x)).flatten(0, 1))


def _first_tokens(adapter: Adapter, features: Features, _options: TokenOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, PatchProjection)
    x = given(features.face_patches, "TransFace patch features", net.width)
    if x.shape[1] != net.patches:
        raise WeightsError(
            f"This checkpoint was trained with {net.patches} patches of a face, but the encoder gives {x.shape[1]}",
            "Use TransFace-S at 112 px.",
        )
    tokens = net(x).flatten(0, 1)
    return Tokens(tokens, tokens)
