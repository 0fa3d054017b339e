"""PhotoMaker files, v1 and v2 (SDXL): ``id_encoder.*`` and ``lora_weights.*``; they act through a word alone.

The tower inside looks at whole photos, as in the official pipelines; v2 looks at the face's raw embedding besides.
Repacks may lack the prefixes (stable-diffusion.cpp's), or the LoRA, for programs that never apply it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.photomaker import PhotoMakerEncoder
from dp_adapter.core.text.fusion import fuse_with
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.core.types import Features
from dp_adapter.weights.attention_lora import attention_lora
from dp_adapter.weights.checkpoint import Checkpoint, Encoder, OwnTower, TokenOptions, given, no_tokens
from dp_adapter.weights.families.ip_adapter import built, under
from dp_adapter.weights.files import WeightFile, require_finite

_FUSE = "fuse_module.mlp1.fc1.weight"
_UNET = "unet."
_TRIGGER = "img"  # pipeline.py's default trigger_word
_PACK = "buffalo_l"
_SAMPLE = 1024  # numbers of each tensor that tell two towers apart: training moves every tensor
_START = 0.2  # pipeline.py: text alone for the first 10 of 50 steps (start_merge_step)


def recognise(file: WeightFile) -> bool:
    return any(f"{prefix}{_FUSE}" in file.tensors for prefix in ("id_encoder.", ""))


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = built(PhotoMakerEncoder.like, _encoder(file), file, "identity encoder")
    bare = {k: v for k, v in file.tensors.items() if k.startswith(_UNET)}
    lora = attention_lora(
        bare if _FUSE in file.tensors else under(file.tensors, "lora_weights."), "sdxl", file.path.name
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
        recipe=no_tokens,
        tokens_per_photo=0,
        features_width=widths,
        lora=lora,
        combine="concatenate",
        pack=_PACK,
        fusion=_fusion,
        tower=_tower(net),
        start=_START,
    )


def read_tower(file: WeightFile) -> OwnTower:
    """What looks at photos alone; of a mapped file nothing else is read.

    Raises:
        WeightsError: it is incomplete, or holds NaN or infinite values.
    """
    encoder = _encoder(file)
    require_finite(replace(file, tensors=encoder))
    return _tower(built(PhotoMakerEncoder.like, encoder, file, "identity encoder"))


def _encoder(file: WeightFile) -> Mapping[str, Tensor]:
    if _FUSE in file.tensors:
        return {k: v for k, v in file.tensors.items() if not k.startswith(_UNET)}
    return under(file.tensors, "id_encoder.")


def _tower(net: PhotoMakerEncoder) -> OwnTower:
    size, perceiver = net.vision_model.image_size, net.qformer_perceiver

    def embed(pixels: Tensor, faceid: Tensor | None) -> Tensor:
        pixels = given(pixels, "photos", size)
        face = None if perceiver is None else given(faceid, "raw face embeddings", perceiver.face)
        with torch.no_grad():
            return net.embed(pixels, face)

    return OwnTower("photomaker", lambda: _digest(net), size, None if perceiver is None else _PACK, embed)


def _digest(net: PhotoMakerEncoder) -> str:
    """16 hex digits of all but the fuse module, which sees no photo; the same in every container and precision."""
    sha = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        if not name.startswith("fuse_module."):
            sha.update(f"{name} {tuple(value.shape)}\n".encode())
            sha.update(value.flatten()[:_SAMPLE].half().numpy().tobytes())
    return sha.hexdigest()[:16]


def _fusion(adapter: Adapter, features: Features, _options: TokenOptions) -> TextIdentity:
    net = adapter.projection
    assert isinstance(net, PhotoMakerEncoder)
    embeds = given(features.id_embeds, "what its own vision tower sees", net.context).flatten(0, 1)  # [n T, D]
    return TextIdentity(fuse_with(net.fuse_module, embeds), len(embeds), trigger=_TRIGGER)
