"""The kind of a file that is no supported adapter, for the message that refuses it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dp_adapter.hints import command
from dp_adapter.weights import res_adapter


@dataclass(frozen=True)
class ForeignKind:
    """A kind of file: its name in words, and what to do with it."""

    title: str
    advice: str


_LORA = ForeignKind("a LoRA", "Use it through the prompt, not as an identity adapter.")
_CONTROLNET = ForeignKind(
    "a ControlNet (InstantID's IdentityNet has the same keys)", "Put it where ControlNet's models are."
)
_VAE = ForeignKind("a VAE", "Choose it in the WebUI's settings.")
_RES_ADAPTER = ForeignKind("a ResAdapter", "Choose its folder as size companion, beside an identity adapter.")
_LEARNED_WORD_KEY = re.compile(r".+_v\d+")
_UNSUPPORTED = "It is not supported; take one of the adapters that the README names."
_KINDS_BY_KEY: tuple[tuple[str, ForeignKind], ...] = (
    (
        "model.diffusion_model.",
        ForeignKind("a whole Stable Diffusion checkpoint", "Choose it as the base model instead."),
    ),
    (
        "postfuse_module.",
        ForeignKind(
            "FastComposer, which is a base model of its own", "It is not supported: it replaces the whole checkpoint."
        ),
    ),
    ("text_branch.", ForeignKind("UniID's text branch", _UNSUPPORTED)),
    ("adapter_branch.", ForeignKind("UniID's adapter branch", _UNSUPPORTED)),
    ("faceid_adapter.", ForeignKind("UniPortrait", _UNSUPPORTED)),
    ("pulid_ca.", ForeignKind("PuLID for FLUX", "Take pulid_v1.1.safetensors, which is for SDXL.")),
    ("id_encoder.", ForeignKind("PhotoMaker without its fuse_module", "Download it again.")),
    ("id_adapter_attn_layers.", ForeignKind("PuLID without its encoder", "Download it again.")),
    ("lora_unet_", _LORA),
    ("lora_te", _LORA),
    ("control_model.", _CONTROLNET),
    ("controlnet_cond_embedding.", _CONTROLNET),
    ("input_hint_block.", _CONTROLNET),
    ("string_to_param", ForeignKind("a textual inversion embedding", "Use it through the prompt.")),
    ("first_stage_model.", _VAE),
    ("decoder.up", _VAE),
    ("vision_model.", ForeignKind("a CLIP vision encoder", "Put it into the clip_vision folder.")),
    ("visual.blocks.", ForeignKind("an EVA-CLIP encoder, as PuLID takes it", "Put it into the clip_vision folder.")),
    (
        "local_fac_prj.",
        ForeignKind("a FaceChain-FACT adapter whose projection is unknown", "Take one of the published files."),
    ),
    ("photos.0.", ForeignKind("a saved identity", "Put it into models/dp_adapter/identities.")),
    (
        "patch_embed.proj.",
        ForeignKind(
            "a vision encoder such as TransFace, without an adapter", "FaceChain-FACT takes it as its encoder."
        ),
    ),
    (
        "ip_adapter.",
        ForeignKind("a relative of IP-Adapter whose image projection is unknown", "Another version may fit."),
    ),
)


def _learned_words_of_id_ea() -> ForeignKind:
    return ForeignKind(
        "the words of an identity as ID-EA's released code saves them (textual inversion)",
        "They act at the text encoder's input: save each as an embedding of the WebUI and use it through the prompt, "
        f"or learn the person anew with {command('personalise')}, whose file holds more than the words.",
    )


def identify(tensors: Mapping[str, Tensor]) -> ForeignKind | None:
    """The kind of file by its keys, or None."""
    if res_adapter.is_lora(tensors) or res_adapter.is_norms(tensors):
        return _RES_ADAPTER
    if tensors and all(tensor.ndim == 1 and _LEARNED_WORD_KEY.fullmatch(key) for key, tensor in tensors.items()):
        return _learned_words_of_id_ea()
    for sign, known in _KINDS_BY_KEY:
        if any(key.startswith(sign) or f".{sign}" in key for key in tensors):
            return known
    return None


def describe(tensors: Mapping[str, Tensor]) -> str:
    """A sentence that names the kind of file by its keys."""
    known = identify(tensors)
    if known is not None:
        return f"it looks like {known.title}. {known.advice}"
    first = ", ".join(sorted(tensors)[:3])
    return f"its keys are unknown (the first are {first})."
