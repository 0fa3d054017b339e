"""PhotoMaker files, v1 and v2 (SDXL): ``id_encoder.*`` and ``lora_weights.*``; they act through a word alone.

The tower inside looks at whole photos, as in the official pipelines; v2 looks at the face's raw embedding besides.
Repacks may lack the prefixes (stable-diffusion.cpp's), or the LoRA, for programs that never apply it.
"""

from __future__ import annotations

from torch import Tensor

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.fusion import fuse_with
from dp_adapter.core.photomaker import PhotoMakerEncoder
from dp_adapter.core.text_side import TextIdentity
from dp_adapter.core.types import Features
from dp_adapter.weights.attention_lora import attention_lora
from dp_adapter.weights.checkpoint import Checkpoint, Encoder, TokenOptions, given, no_tokens
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.ip_adapter import built, under

_FUSE = "fuse_module.mlp1.fc1.weight"
_UNET = "unet."
_TRIGGER = "img"  # pipeline.py's default trigger_word
_START = 0.2  # pipeline.py: text alone for the first 10 of 50 steps (start_merge_step)


def recognise(file: WeightFile) -> bool:
    return any(f"{prefix}{_FUSE}" in file.tensors for prefix in ("id_encoder.", ""))


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    bare = _FUSE in file.tensors
    encoder = {k: v for k, v in file.tensors.items() if not k.startswith(_UNET)}
    net = built(PhotoMakerEncoder.like, encoder if bare else under(encoder, "id_encoder."), file, "identity encoder")
    layers = {k: v for k, v in file.tensors.items() if k.startswith(_UNET)}
    lora = attention_lora(layers if bare else under(file.tensors, "lora_weights."), "sdxl", file.path.name)
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
        fusion=_fusion,
        start=_START,
    )


def _fusion(adapter: Adapter, features: Features, _options: TokenOptions) -> TextIdentity:
    net = adapter.projection
    assert isinstance(net, PhotoMakerEncoder)
    pixels = given(features.pixels, "photos", net.vision_model.image_size)
    faceid: Tensor | None = None
    if net.qformer_perceiver is not None:
        faceid = given(features.faceid, "raw face embeddings", net.qformer_perceiver.face)
    embeds = net.embed(pixels, faceid)
    return TextIdentity(fuse_with(net.fuse_module, embeds), len(embeds), trigger=_TRIGGER)
