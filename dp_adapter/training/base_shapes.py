"""The real shapes of a base model, on the meta device: nothing is downloaded and nothing is allocated.

They are those of the model that the run names, where it is here, and else those of SD1.5 and SDXL, as in
``unet/config.json``, ``vae/config.json`` and ``text_encoder*/config.json`` of runwayml/stable-diffusion-v1-5 and
stabilityai/stable-diffusion-xl-base-1.0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.hosts.pipelines.single_file import RESOURCES, config_beside, inspect_file, unet_parameters
from dp_adapter.training.base_model import require_family
from dp_adapter.training.config import Config

UNETS: dict[Base, dict[str, Any]] = {
    "sd15": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sdxl": {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}

_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}

_CLIP_L: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}

_CLIP_G: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}


@dataclass(frozen=True)
class BaseModels:
    """The frozen models of a base, on the meta device; ``here`` says whether they are those that the run names."""

    unet: nn.Module
    vae: nn.Module
    texts: tuple[nn.Module, ...]
    here: bool

    @property
    def context(self) -> int:
        """Width D of the text context."""
        return cast(Any, self.unet).config.cross_attention_dim

    @property
    def pooled(self) -> int:
        """Width of SDXL's pooled text."""
        return cast(Any, self.texts[-1]).config.projection_dim


def build(config: Config) -> BaseModels:
    """Builds the models of the folder or file that the configuration names, or else those of its family's own base.

    Raises:
        HostError, TrainingError: it is no model, of another family, or its sizes are not known.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    library, family = cast(Any, diffusers), config.base.family
    path = Path(config.base.model)
    folder = _find_configurations(path, config.base.config, family)
    configured = [_read_config(folder, part) for part in ("unet", "vae", "text_encoder", "text_encoder_2")]
    defaults = (UNETS[family], _VAE, _CLIP_L, _CLIP_G)
    unet, vae, first, second = (
        (own or default for own, default in zip(configured, defaults, strict=True)) if configured[0] else defaults
    )
    with torch.device("meta"):
        texts: list[nn.Module] = [CLIPTextModel(CLIPTextConfig(**first))]
        if family == "sdxl":
            texts.append(CLIPTextModelWithProjection(CLIPTextConfig(**second)))
        found = BaseModels(
            library.UNet2DConditionModel.from_config(unet) if configured[0] else library.UNet2DConditionModel(**unet),
            library.AutoencoderKL.from_config(vae) if configured[0] else library.AutoencoderKL(**vae),
            tuple(texts),
            folder is not None,
        )
    if path.is_file():
        _require_size(path, found.unet)
    return found


def _find_configurations(path: Path, given: str, family: Base) -> Path | None:
    """The folder in which a model's configurations lie; None where the model is not here.

    Args:
        given: the folder for a single file that the run names; empty for none.
    """
    if path.is_dir():
        unet = _read_config(path, "unet")
        if unet is None:
            raise HostError(
                f"{path} is no diffusers model: it has no unet/config.json", "Give the folder that has one."
            )
        require_family(path.name, "sdxl" if unet.get("addition_embed_type") == "text_time" else "sd15", family)
        return path
    if not path.is_file():
        return None
    require_family(path.name, base := inspect_file(path).base, family)
    return Path(given) if given else config_beside(path) or RESOURCES / base


def _require_size(file: Path, unet: nn.Module) -> None:
    """Raises HostError where a file holds a UNet of another size than its configurations say."""
    actual, expected = unet_parameters(file), sum(value.numel() for value in unet.parameters())
    if actual != expected:
        raise HostError(
            f"{file.name} holds a UNet of {actual / 1e6:.1f} M parameters, its configurations are of one of "
            f"{expected / 1e6:.1f} M",
            f"Put the folder {file.stem} with its own configurations beside it.",
        )


def _read_config(folder: Path | None, part: str) -> dict[str, Any] | None:
    path = None if folder is None else folder / part / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None
