"""A very narrow Stable Diffusion base, shards for it, and a run of three short stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from tests.training import made
from tools.tiny_base import tiny_pipeline, tiny_unet, tiny_vae

NARROW = {
    "block_out_channels": (16, 16, 16, 16),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}


def folder_of_base(folder: Path) -> Path:
    """A diffusers folder of SD1.5's layout with random weights."""
    torch.manual_seed(0)
    library: Any = diffusers
    text: dict[str, Any] = {
        **tiny_pipeline.TEXT_CONFIG,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
    }
    pipeline = tiny_pipeline.assemble(
        library.UNet2DConditionModel(**{**tiny_unet.CONFIG, **NARROW}),
        library.AutoencoderKL(**{**tiny_vae.CONFIG, "block_out_channels": (4, 4, 4, 4), "layers_per_block": 1}),
        CLIPTextModel(CLIPTextConfig(**text)),
    )
    pipeline.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made.shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def tables(base: Path, pattern: str, tmp_path: Path) -> dict[str, Any]:
    """A configuration as TOML would hold it: three stages of two steps."""
    return {
        "out": str(tmp_path / "out"),
        "ema": 0.5,
        "base": {"model": str(base)},
        "data": {"shards": [pattern], "resolution": 64, "cache_latents": True},
        "adapter": {"tokens": 2, "tca_rank": 2},
        "watch": {"every": 1, "checkpoint_every": 1, "samples_every": 0, "samples": 0},
        "stage": [
            {"kind": "iea", "steps": 2, "batch": 2, "lr": 1e-2},
            {"kind": "tca", "steps": 2, "batch": 2, "lr": 1e-2},
            {"kind": "ffb", "steps": 2, "batch": 2, "lr": 1e-2, "losses": {"identity": 0.0}},
        ],
    }
