"""Diffusers' configurations of a model of SD1.5's layout, in the terms of CompVis' ldm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dp_adapter.errors import HostError


def unet(configs: Path) -> dict[str, Any]:
    """``UNetModel``'s parameters, from a folder in diffusers' layout.

    Raises:
        HostError: they cannot be described so.
    """
    config = _read(configs, "unet/config.json")
    widths, heads = config["block_out_channels"], config["attention_head_dim"]  # that name means heads, in diffusers
    sizes = {width / number for width, number in zip(widths, heads, strict=True)}
    if len(sizes) > 1:
        raise HostError("The UNet's heads are not all of one size", "Train it with heads in proportion to its widths.")
    return {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "attention_resolutions": [2**i for i, kind in enumerate(config["down_block_types"]) if "CrossAttn" in kind],
        "num_res_blocks": config["layers_per_block"],
        "channel_mult": [width // widths[0] for width in widths],
        "num_head_channels": int(sizes.pop()),
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": config["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }


def vae(configs: Path) -> dict[str, Any]:
    """``AutoencoderKL``'s parameters, without a loss."""
    config = _read(configs, "vae/config.json")
    widths = config["block_out_channels"]
    return {
        "embed_dim": config["latent_channels"],
        "ddconfig": {
            "double_z": True,
            "z_channels": config["latent_channels"],
            "resolution": config["sample_size"],
            "in_channels": config["in_channels"],
            "out_ch": config["out_channels"],
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    }


def model(configs: Path, text_encoder: Path) -> dict[str, Any]:
    """The whole model as ``v1-inference.yaml`` describes it.

    Args:
        text_encoder: folder with the text encoder's configuration and tokenizer; ldm takes both from one place.

    Raises:
        HostError: as ``unet``.
    """
    schedule = _read(configs, "scheduler/scheduler_config.json")
    first_stage = _read(configs, "vae/config.json")
    network = unet(configs)
    params: dict[str, Any] = {
        "linear_start": schedule["beta_start"],
        "linear_end": schedule["beta_end"],
        "timesteps": schedule["num_train_timesteps"],
        "num_timesteps_cond": 1,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": network["image_size"],
        "channels": first_stage["latent_channels"],
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": first_stage["scaling_factor"],
        "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": network},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {**vae(configs), "lossconfig": {"target": "torch.nn.Identity"}},
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": str(text_encoder)},
        },
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _read(configs: Path, name: str) -> dict[str, Any]:
    return json.loads((configs / name).read_text(encoding="utf-8"))
