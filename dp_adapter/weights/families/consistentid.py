"""ConsistentID files (SD1.5, SDXL): ``image_proj``/``image_proj_model``, ``adapter_modules`` and ``FacialEncoder``.

Four identity tokens as FaceID-Plus, and the parts of the face fused into a word (arXiv 2404.16771).
Source: JackAILab/ConsistentID@e234008 ``pipline_StableDiffusion{,XL}_ConsistentID.py``, ``functions.py``,
``attention.py``; parameter names are theirs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.clip_tower import in_float
from dp_adapter.core.projection import FacePlusProjection, Resampler, State, strip_prefix
from dp_adapter.core.text.fusion import FuseModule, fuse_with
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.core.types import Features, Tokens
from dp_adapter.weights.build_modules import build_module
from dp_adapter.weights.checkpoint import Checkpoint, Encoder, RecipeOptions, require
from dp_adapter.weights.families import ip_adapter
from dp_adapter.weights.files import WeightFile

_ENCODER = "FacialEncoder."
_START = 0.6  # infer.py: the parts join the text after 30 of 50 steps (merge_steps)


class FacialEncoder(nn.Module):
    """CLIP's hidden states of P parts -> one embedding each, for the tokens of a word."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.visual_projection = Resampler(strip_prefix(state, "visual_projection."))
        self.fuse_module = FuseModule(strip_prefix(state, "fuse_module."))

    def embed(self, parts: Tensor, unseen: Tensor) -> Tensor:
        """One embedding [D] for every part that is seen in a photo -> [k, D], photo by photo.

        Args:
            parts: [n, P, L, c]; a part that the photo does not show has the hidden states of zero pixels.
            unseen: of zero pixels [1, L, c].
        """
        flat = parts.flatten(0, 1)  # [n P, L, c]
        seen = (flat != unseen).flatten(1).any(1)
        if not seen.any():
            return torch.zeros(0, self.fuse_module.context)
        with torch.no_grad():
            return in_float(self.visual_projection, flat[seen]).flatten(0, 1)


class Projections(nn.Module):
    """Both networks of a file."""

    def __init__(self, tokens: FacePlusProjection, parts: FacialEncoder) -> None:
        super().__init__()
        self.tokens = tokens
        self.parts = parts


def recognise(file: WeightFile) -> bool:
    return f"{_ENCODER}visual_projection.latents" in file.tensors and "ip_adapter.1.to_k_ip.weight" in file.tensors


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    plain = ip_adapter.read_face_plus(file, family, title)
    net = plain.adapter.projection
    assert isinstance(net, FacePlusProjection)
    parts = build_module(FacialEncoder, strip_prefix(file.tensors, _ENCODER), file, "its facial encoder")
    widths: dict[Encoder, int] = {**plain.features_width, "clip-parts": parts.visual_projection.proj_in.in_features}
    sites = [plain.adapter.site(index) for index in range(len(plain.adapter.sites))]
    return replace(
        plain,
        adapter=Adapter(Projections(net, parts), sites),
        recipe=_make_tokens,
        fusion=_make_text_identity,
        encoders=tuple(widths),
        features_width=widths,
        models={},
        crop="photo",
    )


def _make_tokens(adapter: Adapter, features: Features, options: RecipeOptions) -> Tokens:
    both = adapter.projection
    assert isinstance(both, Projections)
    # The SDXL pipeline adds the face's own tokens (shortcut=True), the SD1.5 pipeline does not.
    return ip_adapter.make_face_plus_tokens(both.tokens, features, len(adapter.sites) > 16, options.structure)


def _make_text_identity(adapter: Adapter, features: Features, _options: RecipeOptions) -> TextIdentity:
    both = adapter.projection
    assert isinstance(both, Projections)
    net = both.parts
    width = net.visual_projection.proj_in.in_features
    parts = require(features.clip_parts, "CLIP hidden states of the parts of a face", width)
    unseen = require(features.clip_hidden_uncond, "CLIP hidden states of a black picture", width)
    embeds = net.embed(parts, unseen)
    return TextIdentity(fuse_with(net.fuse_module, embeds), len(embeds), start=_START)
