"""PhotoMaker files, v1 and v2 (SDXL): ``id_encoder.*`` and ``lora_weights.*``; they act through a word alone.

The tower inside looks at whole photos, as in the official pipelines; v2 looks at the face's raw embedding besides.
Repacks may lack the prefixes (stable-diffusion.cpp's), or the LoRA, for programs that never apply it.

Source: arXiv 2312.04461, TencentARC/PhotoMaker@060b4fc ``photomaker/{model,model_v2,resampler}.py``; parameter
names are theirs.
Shapes: n photos, T embeddings a photo (v1 one, v2 two), D width of the text context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.clip_tower import VisionTower, in_float
from dp_adapter.core.projection import Perceiver, State, strip_prefix
from dp_adapter.core.text.fusion import FuseModule, fuse_with
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.core.types import Features
from dp_adapter.weights.attention_lora import attention_lora
from dp_adapter.weights.build_modules import build_module
from dp_adapter.weights.checkpoint import BuiltInTower, Checkpoint, Encoder, RecipeOptions, make_no_tokens, require
from dp_adapter.weights.files import WeightFile, require_finite

_FUSE = "fuse_module.mlp1.fc1.weight"
_UNET = "unet."
_TRIGGER = "img"  # pipeline.py's default trigger_word
_PACK = "buffalo_l"
_SAMPLE = 1024  # numbers of each tensor that tell two towers apart: training moves every tensor
_START = 0.2  # pipeline.py: text alone for the first 10 of 50 steps (start_merge_step)
_HEAD_DIM = 128  # of v2's perceiver


class FacePerceiver(nn.Module):
    """v2: face embedding [n, e] and the tower's last hidden state [n, L, c] -> [n, T, D]."""

    def __init__(self, state: State) -> None:
        super().__init__()
        hidden, face = state["token_proj.0.weight"].shape
        outputs, context = state["token_proj.2.weight"].shape[0], state["token_norm.weight"].shape[0]
        self.token_proj = nn.Sequential(nn.Linear(face, hidden), nn.GELU(), nn.Linear(hidden, outputs))
        self.token_norm = nn.LayerNorm(context)
        self.perceiver_resampler = Perceiver(strip_prefix(state, "perceiver_resampler."), _HEAD_DIM)
        self.face, self.tokens = face, outputs // context

    def forward(self, faceid: Tensor, hidden: Tensor) -> Tensor:
        tokens = self.token_norm(self.token_proj(faceid).unflatten(-1, (self.tokens, -1)))
        return tokens + self.perceiver_resampler.refine(hidden, tokens)


class PhotoMakerEncoder(nn.Module):
    """The ``id_encoder`` of a file, v1 or v2 by its keys.

    v2 files keep v1's two projections, which v2 does not use.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.vision_model = VisionTower(strip_prefix(state, "vision_model."))
        self.visual_projection = _linear_like(state["visual_projection.weight"])
        self.visual_projection_2 = _linear_like(state["visual_projection_2.weight"])
        self.fuse_module = FuseModule(strip_prefix(state, "fuse_module."))
        perceiver = strip_prefix(state, "qformer_perceiver.")
        self.qformer_perceiver = FacePerceiver(perceiver) if perceiver else None

    @property
    def context(self) -> int:
        """D"""
        return self.fuse_module.context

    @property
    def tokens(self) -> int:
        """T"""
        return 1 if self.qformer_perceiver is None else self.qformer_perceiver.tokens

    def embed(self, pixels: Tensor, faceid: Tensor | None) -> Tensor:
        """Pixels [n, 3, s, s], and face embeddings [n, e] for v2 -> [n, T, D]."""
        hidden, pooled = self.vision_model(pixels)
        if self.qformer_perceiver is None:
            projections = (self.visual_projection, self.visual_projection_2)
            return torch.cat([in_float(one, pooled) for one in projections], dim=-1)[:, None]
        assert faceid is not None
        return in_float(self.qformer_perceiver, faceid, hidden)


def _linear_like(weight: Tensor) -> nn.Linear:
    return nn.Linear(weight.shape[1], weight.shape[0], bias=False)


def recognise(file: WeightFile) -> bool:
    return any(f"{prefix}{_FUSE}" in file.tensors for prefix in ("id_encoder.", ""))


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_module(PhotoMakerEncoder, _encoder_state(file), file, "its identity encoder")
    bare = {k: v for k, v in file.tensors.items() if k.startswith(_UNET)}
    lora = attention_lora(
        bare if _FUSE in file.tensors else strip_prefix(file.tensors, "lora_weights."), "sdxl", file.path.name
    )
    widths: dict[Encoder, int] = {"pixels": net.vision_model.image_size}
    if net.qformer_perceiver is not None:
        widths["arcface-raw"] = net.qformer_perceiver.face
    return Checkpoint(
        path=file.path,
        family=family,
        title=f"{title} {'v1' if net.qformer_perceiver is None else 'v2'}",
        base="sdxl",
        adapter=Adapter(net, ()),
        encoders=tuple(widths),
        recipe=make_no_tokens,
        tokens_per_photo=0,
        features_width=widths,
        lora=lora,
        combine="concatenate",
        pack=_PACK,
        fusion=_make_text_identity,
        tower=_make_tower(net),
        start=_START,
    )


def read_tower(file: WeightFile) -> BuiltInTower:
    """What looks at photos alone; of a mapped file nothing else is read.

    Raises:
        WeightsError: it is incomplete, or holds NaN or infinite values.
    """
    encoder = _encoder_state(file)
    require_finite(replace(file, tensors=encoder))
    return _make_tower(build_module(PhotoMakerEncoder, encoder, file, "its identity encoder"))


def _encoder_state(file: WeightFile) -> Mapping[str, Tensor]:
    if _FUSE in file.tensors:
        return {k: v for k, v in file.tensors.items() if not k.startswith(_UNET)}
    return strip_prefix(file.tensors, "id_encoder.")


def _make_tower(net: PhotoMakerEncoder) -> BuiltInTower:
    size, perceiver = net.vision_model.image_size, net.qformer_perceiver

    def embed(pixels: Tensor, faceid: Tensor | None) -> Tensor:
        pixels = require(pixels, "photos", size)
        face = None if perceiver is None else require(faceid, "raw face embeddings", perceiver.face)
        with torch.no_grad():
            return net.embed(pixels, face)

    return BuiltInTower("photomaker", lambda: _digest(net), size, None if perceiver is None else _PACK, embed)


def _digest(net: PhotoMakerEncoder) -> str:
    """16 hex digits of all but the fuse module, which sees no photo; the same in every container and precision."""
    sha = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        if not name.startswith("fuse_module."):
            sha.update(f"{name} {tuple(value.shape)}\n".encode())
            sha.update(value.flatten()[:_SAMPLE].half().numpy().tobytes())
    return sha.hexdigest()[:16]


def _make_text_identity(adapter: Adapter, features: Features, _options: RecipeOptions) -> TextIdentity:
    net = adapter.projection
    assert isinstance(net, PhotoMakerEncoder)
    embeds = require(features.id_embeds, "what its own vision tower sees", net.context).flatten(0, 1)  # [n T, D]
    return TextIdentity(fuse_with(net.fuse_module, embeds), len(embeds), trigger=_TRIGGER)
