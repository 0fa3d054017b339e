"""FaceChain-FACT files: ``local_fac_prj.*`` and gated self-attention under diffusers' processor names.

Two versions are public: the released one (16 tokens a photo through a resampler), and an earlier one from the
repository's development branches (``adapter_maj_25.ckpt``: 196 tokens, a linear layer over the patches). That one gave
the unconditional row the same tokens as the conditional one.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter
from dp_adapter.core.projection import Resampler, State, strip_prefix
from dp_adapter.core.types import Features, Tokens
from dp_adapter.errors import WeightsError
from dp_adapter.weights.build_modules import build_module, build_projection
from dp_adapter.weights.checkpoint import SITES, Checkpoint, Recipe, RecipeOptions, require
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.site_layers import checkpoint_order

_SITE = re.compile(r"((down|up|mid)_block.*)\.attn2\.processor\.(.+)")


class PatchProjection(nn.Module):
    """TransFace patch features [n, L, c] -> [n, T, D]: mixed over the patches, then widened.

    Source: modelscope/facechain@9de7836 (branch dev/facechain_fact_improve)
    ``facechain_adapter/face_adapter/face_adapter.py``, ``Face_Prj_wofc``.
    """

    def __init__(self, patches: int, tokens: int, width: int, context: int) -> None:
        super().__init__()
        self.patches, self.tokens, self.width = patches, tokens, width
        self.net = nn.Linear(patches, tokens)
        self.feature = nn.Sequential(nn.Linear(width, context, bias=False), nn.BatchNorm1d(tokens))

    @classmethod
    def like(cls, state: State) -> PatchProjection:
        tokens, patches = state["net.weight"].shape
        context, width = state["feature.0.weight"].shape
        return cls(patches, tokens, width, context)

    def forward(self, patches: Tensor) -> Tensor:
        return self.feature(self.net(patches.transpose(1, 2)).transpose(1, 2))  # [n, T, D]


def recognise(file: WeightFile) -> bool:
    return "local_fac_prj.latents" in file.tensors and _is_gated(file)


def recognise_first(file: WeightFile) -> bool:
    return "local_fac_prj.net.weight" in file.tensors and _is_gated(file)


def _is_gated(file: WeightFile) -> bool:
    return any("alpha_attn" in key for key in file.tensors)


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(Resampler.like, strip_prefix(file.tensors, "local_fac_prj."), file)
    return _make_checkpoint(
        file, family, title, net, make_resampled_tokens, net.latents.shape[1], net.proj_in.in_features
    )


def read_first(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(PatchProjection.like, strip_prefix(file.tensors, "local_fac_prj."), file)
    checkpoint = _make_checkpoint(file, family, title, net, _make_first_tokens, net.tokens, net.width)
    return replace(checkpoint, shapes={"face_patches": (net.patches, net.width)})


def _make_checkpoint(
    file: WeightFile, family: str, title: str, net: nn.Module, recipe: Recipe, tokens: int, width: int
) -> Checkpoint:
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base="sd15",
        adapter=Adapter(net, _read_sites(file)),
        encoders=("transface",),
        recipe=recipe,
        tokens_per_photo=tokens,
        features_width={"transface": width},
        combine="concatenate",
        mode="gated",
    )


def _read_sites(file: WeightFile) -> list[GatedSiteAdapter]:
    sites: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.tensors.items():
        if match := _SITE.fullmatch(key):
            sites.setdefault(match[1], {})[match[3]] = tensor
    if len(sites) != SITES["sd15"]:
        raise WeightsError(f"{file.path.name} has {len(sites)} gated attention layers; SD1.5 needs {SITES['sd15']}")
    return [build_gated_site(sites[name], name, file) for name in sorted(sites, key=checkpoint_order)]


def build_gated_site(state: State, name: str | int, file: WeightFile) -> GatedSiteAdapter:
    """A layer whose weights are the file's own tensors. Raises WeightsError where it is incomplete."""
    return build_module(_gated_like, state, file, f"layer {name}")


def _gated_like(state: State) -> GatedSiteAdapter:
    width, context = state["linear.weight"].shape
    return GatedSiteAdapter(context, width, state["ff.net.2.weight"].shape[1])


def make_resampled_tokens(adapter: Adapter, features: Features, _options: RecipeOptions) -> Tokens:
    """Tokens of TransFace's patches; uncond are those of zeros."""
    net = adapter.projection
    assert isinstance(net, Resampler)
    x = require(features.face_patches, "TransFace patch features", net.proj_in.in_features)
    return Tokens(net(x).flatten(0, 1), net(torch.zeros_like(x)).flatten(0, 1))


def _make_first_tokens(adapter: Adapter, features: Features, _options: RecipeOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, PatchProjection)
    x = require(features.face_patches, "TransFace patch features", net.width)
    if x.shape[1] != net.patches:
        raise WeightsError(
            f"This checkpoint was trained with {net.patches} patches of a face, but the encoder gives {x.shape[1]}",
            "Use TransFace-S at 112 px.",
        )
    tokens = net(x).flatten(0, 1)
    return Tokens(tokens, tokens)
