"""Checkpoints in one file, in the naming of CompVis' and Stability's own code: what they are, and loading them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dp_adapter.errors import HostError
from dp_adapter.hosts.clip_tokenizer import RESOURCES, clip_tokenizer
from dp_adapter.hosts.sites import Base

Shapes = Mapping[str, tuple[int, ...]]

_UNET = "model.diffusion_model."
_CONV_IN = _UNET + "input_blocks.0.0.weight"
_TAIL = "text_model.embeddings.position_embedding.weight"
USAGE = "usage.json"
_SUPPORTED = "Choose a Stable Diffusion 1.5 or SDXL checkpoint."

# Key that only such a model has, and its name; other families first, because they share prefixes with ours.
_OTHERS = (
    (_UNET + "double_blocks.0.img_attn.qkv.weight", "a Flux model"),
    ("double_blocks.0.img_attn.qkv.weight", "a Flux model"),
    (_UNET + "joint_blocks.0.x_block.attn.qkv.weight", "a Stable Diffusion 3 model"),
    ("joint_blocks.0.x_block.attn.qkv.weight", "a Stable Diffusion 3 model"),
    ("edm_mean", "a Playground 2.5 model"),
    ("conditioner.embedders.0.model.positional_embedding", "an SDXL refiner"),
    ("cond_stage_model.model.positional_embedding", "a Stable Diffusion 2 model"),
    ("conv_in.weight", "a single part of a model in diffusers' naming"),
    ("decoder.conv_in.weight", "a VAE"),
)


@dataclass(frozen=True)
class Found:
    """What a checkpoint is.

    Attributes:
        in_channels: 4, or 9 for an inpainting model.
        v_prediction, zero_snr: markers that some SDXL checkpoints carry as empty keys.
    """

    base: Base
    in_channels: int
    v_prediction: bool = False
    zero_snr: bool = False


def detect(shapes: Shapes, name: str) -> Found:
    """What the keys and shapes of a checkpoint say that it is.

    Raises:
        HostError: another model family, or a part is missing.
    """
    for key, kind in _OTHERS:
        if key in shapes:
            raise HostError(f"{name} is {kind}, in which the adapter cannot work", _SUPPORTED)
    if _CONV_IN not in shapes:
        lora = any(key.startswith("lora_") or ".lora_" in key for key in shapes)
        raise HostError(f"{name} is {'a LoRA' if lora else 'no checkpoint'}: it holds no UNet", _SUPPORTED)
    if "conditioner.embedders.1.model.positional_embedding" in shapes:
        base: Base = "sdxl"
        text = "conditioner.embedders.0.transformer." + _TAIL
    else:
        base = "sd15"
        text = "cond_stage_model.transformer." + _TAIL
    if text not in shapes:
        raise HostError(f"{name} holds no CLIP text encoder: '{text}' is missing", "Choose a full checkpoint.")
    if not any(key.endswith("decoder.conv_in.weight") for key in shapes):
        raise HostError(f"{name} holds no VAE", "Choose a checkpoint with a baked VAE.")
    channels = shapes[_CONV_IN][1]
    if channels not in (4, 9):
        raise HostError(f"{name} takes {channels} input channels (an editing or upscaling model)", _SUPPORTED)
    return Found(base, channels, "v_pred" in shapes, "ztsnr" in shapes)


def inspect_file(path: Path) -> Found:
    """What the checkpoint in a file is; of a ``.safetensors`` only the header is read.

    Raises:
        HostError: as ``detect``, or the file is damaged.
    """
    return detect(_shapes(path), path.name)


def load_single_file(path: Path, dtype: torch.dtype, config: Path | None = None) -> Any:
    """A diffusers pipeline from one ``.safetensors`` or ``.ckpt`` file, without the network.

    Args:
        config: folder in diffusers' layout with the configurations of a model of other widths; by default the one
            beside the file that has its name, where there is one.

    Raises:
        HostError: not a file that ``detect`` accepts, damaged, or a pickle that is not only weights.
    """
    import diffusers

    library = cast(Any, diffusers)
    found = inspect_file(path)
    folder = str(config or config_beside(path) or RESOURCES / found.base)
    common: dict[str, Any] = {"config": folder, "torch_dtype": dtype, "local_files_only": True}
    parts: dict[str, Any] = {"tokenizer": clip_tokenizer()}
    if found.base == "sdxl":
        pipeline_class = library.StableDiffusionXLPipeline
        parts |= {"tokenizer_2": clip_tokenizer(pad="!"), "add_watermarker": False}
    else:
        pipeline_class = library.StableDiffusionPipeline
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    if found.in_channels != 4:
        parts["unet"] = library.UNet2DConditionModel.from_single_file(
            str(path), subfolder="unet", in_channels=found.in_channels, **common
        )
    pipeline = pipeline_class.from_single_file(str(path), **common, **parts)
    if found.v_prediction:
        changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": found.zero_snr}
        kind = cast(Any, type(pipeline.scheduler))
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **changes)
    return pipeline


def config_beside(checkpoint: Path) -> Path | None:
    """The folder ``NAME`` beside ``NAME.safetensors`` with a model's configurations, which other widths need."""
    folder = checkpoint.with_suffix("")
    return folder if (folder / "model_index.json").is_file() else None


def made_for(checkpoint: Path) -> str:
    """Picture size and the like that a checkpoint was made for, where the configurations beside it say so; or ""."""
    folder = config_beside(checkpoint)
    if folder is None or not (folder / USAGE).is_file():
        return ""
    usage = json.loads((folder / USAGE).read_text(encoding="utf-8"))
    size = f"{usage['width']} × {usage['height']} px"
    return f"{size}, CFG scale {usage['guidance']:g}, Clip skip {usage['clip_skip']}"


def _shapes(path: Path) -> Shapes:
    if path.suffix.lower() == ".safetensors":
        return _safetensors_shapes(path)
    try:
        loaded = torch.serialization.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise HostError(
            f"{path.name} holds more than weights, or is damaged; nothing of it was run",
            "Get this model as .safetensors.",
        ) from error
    except (EOFError, RuntimeError, ValueError, OSError) as error:
        raise HostError(f"{path.name} is truncated or damaged ({error})", "Download it again.") from error
    while isinstance(loaded, dict) and "state_dict" in loaded:
        loaded = cast("dict[str, Any]", loaded)["state_dict"]
    if not isinstance(loaded, dict):
        raise HostError(f"{path.name} holds no state dict", _SUPPORTED)
    state = cast("dict[str, Any]", loaded)
    return {key: tuple(value.shape) for key, value in state.items() if isinstance(value, torch.Tensor)}


def _safetensors_shapes(path: Path) -> Shapes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise HostError(f"{path.name} is truncated or damaged ({error})", "Download it again.") from error
