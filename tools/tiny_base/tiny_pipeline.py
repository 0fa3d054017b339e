"""An untrained Stable Diffusion base and adapter for the tests of the real code; what the demo shows is trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import torch

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.projection import FaceProjection
from dp_adapter.hosts.attach.diffusers import sites_of
from dp_adapter.hosts.pipelines.load_pipeline import quiet
from dp_adapter.hosts.prompts.clip_tokenizer import clip_tokenizer
from dp_adapter.weights.families import own_adapter
from tools.tiny_base import random_weights, tiny_unet, tiny_vae

TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 128,
    "projection_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}

SCHEDULER_CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

FACE_DIM = 128
TOKENS = 4

_MARKER = "dp_adapter.json"


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the base as a diffusers folder, unless this very one is there already; about 30 MB.

    Returns:
        The folder.
    """
    marker = folder / _MARKER
    recipe = json.dumps({"untrained": True, "seed": seed, "recipe": _recipe()})
    if marker.is_file() and marker.read_text(encoding="utf-8") == recipe:
        return folder
    marker.unlink(missing_ok=True)
    with quiet():
        _pipeline(seed).save_pretrained(str(folder))
    marker.write_text(recipe, encoding="utf-8")
    return folder


def identity_adapter(path: Path, folder: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Writes an untrained adapter for the base in ``folder``, in this project's own format; encoder SFace.

    Args:
        path: ``.safetensors`` file to write.
        scale: gain of its values; 1 changes the picture visibly and leaves its layout.
    """
    import diffusers

    unet = cast(Any, diffusers).UNet2DConditionModel.from_pretrained(
        str(folder), subfolder="unet", local_files_only=True
    )
    context = unet.config.cross_attention_dim
    adapter = Adapter(
        FaceProjection(FACE_DIM, FACE_DIM, TOKENS, context),
        [SiteAdapter(context, site.channels) for site in sites_of(unet)],
    )
    random_weights.fill(adapter, seed, "adapter.")
    with torch.no_grad():
        # A face's vector has length 1: times its square root of entries each has the variance the norm expects.
        adapter.get_parameter("projection.proj.0.weight").mul_(FACE_DIM**0.5)
        for index in range(len(adapter.sites)):
            site = adapter.site(index)
            assert isinstance(site, SiteAdapter)
            site.to_k.weight.mul_(tiny_unet.SHARPNESS**0.5)
            site.to_v.weight.mul_(0.8 * scale)
    own_adapter.save(path, adapter, "sd15", "sface", {"steps": 0, "note": "untrained"})
    return path


def _pipeline(seed: int) -> Any:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    library = cast(Any, diffusers)
    vae = library.AutoencoderKL(**tiny_vae.CONFIG)
    tiny_vae.construct(vae)
    unet = library.UNet2DConditionModel(**tiny_unet.CONFIG)
    tiny_unet.construct(unet, seed)
    text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
    random_weights.fill(text_encoder, seed, "text.")
    return assemble(unet, vae, text_encoder)


def assemble(unet: Any, vae: Any, text_encoder: Any) -> Any:
    """A Stable Diffusion pipeline of SD1.5's tokenizer and schedule around other networks."""
    import diffusers

    library = cast(Any, diffusers)
    return library.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=library.DDIMScheduler(**SCHEDULER_CONFIG),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _recipe() -> str:
    """Digest of the code that decides the weights."""
    sha = hashlib.sha256()
    for module in (__file__, tiny_unet.__file__, tiny_vae.__file__, random_weights.__file__):
        sha.update(Path(module).read_bytes())
    return sha.hexdigest()
