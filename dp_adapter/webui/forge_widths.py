"""Forge: checkpoints of SD1.5's layout in other widths, such as the demo's small base.

Forge tells what a checkpoint is by exact widths (lllyasviel/huggingface_guess@84826248 ``model_list.py``, ``SD15``:
context_dim 768, model_channels 320) and builds the VAE and the text encoder from
``backend/huggingface/<huggingface_repo>`` (Forge@dfdcbab6 ``backend/loader.py``, ``forge_loader``). No file beside a
checkpoint changes that. So one more kind of model goes to the end of its list, where it is asked only if none of
Forge's own matches: a narrow SD1.5 whose configurations lie in the folder ``NAME`` beside ``NAME.safetensors``. The
absolute path of that folder is its ``huggingface_repo``: joined to Forge's own folder, it stays what it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = "SD15OfOtherWidths"


def register() -> None:
    """Adds the kind, once in a run of the WebUI; nothing where the WebUI does not guess so."""
    model_list: Any = sys.modules.get("huggingface_guess.model_list")  # its loader has imported it before any script
    if model_list is not None and all(kind.__name__ != _NAME for kind in model_list.models):
        model_list.models.append(_kind(model_list.SD15))


def _kind(sd15: Any) -> type:
    """A subclass, as Forge chooses the engine of a checkpoint by what its kind is an instance of."""

    def matches(_cls: type, unet_config: Mapping[str, Any], _state_dict: object = None) -> bool:
        folder = _configs()
        if folder is None:
            return False
        widths = {name: _unet(folder)[name] for name in ("model_channels", "context_dim")}
        return all(unet_config.get(name) == value for name, value in (sd15.unet_config | widths).items())

    def init(self: Any, unet_config: Mapping[str, Any]) -> None:
        folder = _configs()
        assert folder is not None  # it has matched
        self.huggingface_repo = str(folder)
        self.unet_extra_config = {"num_heads": -1, "num_head_channels": _unet(folder)["num_head_channels"]}
        sd15.__init__(self, unet_config)

    return type(_NAME, (sd15,), {"matches": classmethod(matches), "__init__": init})


def _unet(folder: Path) -> dict[str, int]:
    """Diffusers' configuration of a UNet, in the names of ldm."""
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    width = config["block_out_channels"][0]
    heads = config["attention_head_dim"][0]  # that name means heads, in diffusers
    return {
        "model_channels": width,
        "context_dim": config["cross_attention_dim"],
        "num_head_channels": width // heads,
    }


def _configs() -> Path | None:
    """The folder with configurations of the checkpoint that Forge loads now."""
    from modules import sd_models

    from dp_adapter.hosts.single_file import config_beside

    info = sd_models.model_data.forge_loading_parameters.get("checkpoint_info")
    return None if info is None else config_beside(Path(info.filename))
