"""What an unsupported file most likely is, so that the refusal can say it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_SIGNS: tuple[tuple[str, str], ...] = (
    (
        "model.diffusion_model.",
        "it looks like a whole Stable Diffusion checkpoint. Choose it as the base model instead.",
    ),
    ("id_adapter_attn_layers.", "it looks like PuLID, which is not supported yet."),
    ("text_to_weight.", "it looks like MIP-Adapter, which is not supported yet."),
    ("mapping_patch_0.", "it looks like PuLID, which is not supported yet."),
    ("adapter_modules.", "it looks like ConsistentID, which is not supported yet."),
    ("id_encoder.", "it looks like PhotoMaker, which is not supported yet."),
    ("postfuse_module.", "it looks like FastComposer, which is not supported yet."),
    ("lora_unet_", "it looks like a LoRA. Use it through the prompt, not as an identity adapter."),
    ("lora_te", "it looks like a LoRA. Use it through the prompt, not as an identity adapter."),
    ("control_model.", "it looks like a ControlNet. Load it in the ControlNet panel."),
    ("controlnet_cond_embedding.", "it looks like a ControlNet. Load it in the ControlNet panel."),
    ("input_hint_block.", "it looks like a ControlNet. Load it in the ControlNet panel."),
    ("string_to_param", "it looks like a textual inversion embedding. Use it through the prompt."),
    ("first_stage_model.", "it looks like a VAE."),
    ("decoder.up", "it looks like a VAE."),
    ("vision_model.", "it looks like a CLIP vision encoder. Put it into the clip_vision folder."),
    ("local_fac_prj.", "it looks like an older FaceChain-FACT adapter, which is not supported."),
    ("photos.0.", "it looks like a saved identity. Put it into models/dp_adapter/identities."),
    ("patch_embed.proj.", "it looks like a vision encoder, for example TransFace, without an adapter."),
    ("ip_adapter.", "it looks like a relative of IP-Adapter whose image projection is unknown."),
)


def describe(tensors: Mapping[str, Tensor]) -> str:
    """A sentence that names the kind of file by its keys."""
    for sign, what in _SIGNS:
        if any(key.startswith(sign) or f".{sign}" in key for key in tensors):
            return what
    first = ", ".join(sorted(tensors)[:3])
    return f"its keys are unknown (the first are {first})."
