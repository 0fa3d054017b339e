"""Checkpoints in one file, in the naming of CompVis' and Stability's own code: what they are, and loading them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dp_adapter.errors import HostError, WeightsError
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.hosts.prompts.clip_tokenizer import RESOURCES, clip_text_encoder, clip_tokenizer
from dp_adapter.naming import first_line
from dp_adapter.pickles import unpickle

Shapes = Mapping[str, tuple[int, ...]]

_UNET = "model.diffusion_model."
_MOST_NESTED = 4  # state dicts in one another; a dict may hold itself
_CONV_IN = _UNET + "input_blocks.0.0.weight"
_TEXT: dict[Base, str] = {"sd15": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
_TEXT_MODEL = "text_model."
"""Follows in the names since transformers 4.25; checkpoints of 2022 lack it."""
_TEXT_SIGNS = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "final_layer_norm.weight")
_XL_SIGNS = ("conditioner.embedders.", _UNET + "label_emb.0.0.weight")
_VAE_SIGNS = ("decoder.conv_in.weight", "decoder.conv_out.weight", "post_quant_conv.weight")
_LORA_SIGNS = ("lora_", ".hada_", ".lokr_", ".oft_")
_TO_K = _UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_SD2_CONTEXT = 1024
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
    ("cond_stage_model.model.ln_final.weight", "a Stable Diffusion 2 model"),
    ("input_blocks.0.0.weight", "a UNet alone"),
    ("diffusion_model.input_blocks.0.0.weight", "a UNet alone"),
    ("model_ema.diffusion_modelinput_blocks00weight", "the moving average of a UNet alone"),
    ("conv_in.weight", "a single part of a model in diffusers' naming"),
    ("decoder.conv_in.weight", "a VAE"),
)


@dataclass(frozen=True)
class SingleFile:
    """What a checkpoint is.

    Attributes:
        in_channels: 4, or 9 for an inpainting model.
        text: what stands before the keys of its first text encoder.
        v_prediction, zero_snr: markers that some SDXL checkpoints carry as empty keys.
    """

    base: Base
    in_channels: int
    text: str
    v_prediction: bool = False
    zero_snr: bool = False


def detect(shapes: Shapes, name: str) -> SingleFile:
    """What the keys and shapes of a checkpoint say that it is.

    Raises:
        HostError: another model family, or a part is missing.
    """
    whole = _CONV_IN in shapes
    for key, kind in _OTHERS:
        # The moving average stands beside the weights in many a checkpoint.
        if key in shapes and not (whole and kind.endswith("alone")):
            raise HostError(f"{name} is {kind}, in which the adapter cannot work", _SUPPORTED)
    if not whole:
        lora = any(sign in key for key in shapes for sign in _LORA_SIGNS)
        raise HostError(f"{name} is {'a LoRA' if lora else 'no checkpoint'}: it holds no UNet", _SUPPORTED)
    base: Base = "sdxl" if any(key.startswith(_XL_SIGNS) for key in shapes) else "sd15"
    if base == "sd15" and shapes.get(_TO_K, (0, 0))[1] == _SD2_CONTEXT:
        raise HostError(f"{name} is a Stable Diffusion 2 model, in which the adapter cannot work", _SUPPORTED)
    text = _text_of(shapes, base)
    if text is None:
        missing = _TEXT[base] + _TEXT_MODEL + _TEXT_SIGNS[0]
        raise HostError(f"{name} holds no CLIP text encoder: '{missing}' is missing", "Choose a full checkpoint.")
    if not any(key.endswith(_VAE_SIGNS) for key in shapes):
        raise HostError(f"{name} holds no VAE", "Choose a checkpoint with a baked VAE.")
    channels = shapes[_CONV_IN][1]
    if channels not in (4, 9):
        raise HostError(f"{name} takes {channels} input channels (an editing or upscaling model)", _SUPPORTED)
    return SingleFile(base, channels, text, "v_pred" in shapes, "ztsnr" in shapes)


def _text_of(shapes: Shapes, base: Base) -> str | None:
    """What stands before the keys of the first text encoder; None where there is none."""
    prefixes = (_TEXT[base] + _TEXT_MODEL, _TEXT[base])
    return next((prefix for prefix in prefixes if any(prefix + sign in shapes for sign in _TEXT_SIGNS)), None)


def inspect_file(path: Path) -> SingleFile:
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
    parts["text_encoder"] = _text_encoder(path, found.text, Path(folder) / "text_encoder", dtype)
    with _absence_in_words(path.name):
        if found.in_channels != 4:
            parts["unet"] = library.UNet2DConditionModel.from_single_file(
                str(path), subfolder="unet", in_channels=found.in_channels, **common
            )
        pipeline = pipeline_class.from_single_file(str(path), **common, **parts)
    _require_whole(pipeline, path.name)
    if found.v_prediction:
        changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": found.zero_snr}
        kind = cast(Any, type(pipeline.scheduler))
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **changes)
    if folder == str(RESOURCES / found.base) and (size := stated_size(path)):
        pipeline.unet.register_to_config(sample_size=size // pipeline.vae_scale_factor)
    return pipeline


def _text_encoder(path: Path, prefix: str, config: Path, dtype: torch.dtype) -> Any:
    """The first text encoder. Not by diffusers, which knows one only by one key, and not under the names of 2022."""
    state = {key.removeprefix(prefix): value.to(dtype) for key, value in _tensors(path, prefix).items()}
    return clip_text_encoder(state, config)


@contextmanager
def _absence_in_words(name: str) -> Generator[None]:
    """What diffusers raises where weights are missing, before or while it moves what it has made."""
    from diffusers.loaders import single_file_utils

    try:
        yield
    except (cast(Any, single_file_utils).SingleFileComponentError, NotImplementedError) as error:
        raise HostError(
            f"{name} is incomplete: weights are missing ({first_line(error)})", "Download it again."
        ) from error


def _require_whole(pipeline: Any, name: str) -> None:
    """Raises HostError where a part lacks weights, which diffusers leaves empty."""
    for part, module in pipeline.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        missing = [key for key, value in module.state_dict().items() if value.is_meta]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise HostError(f"{name}: its {part} is incomplete, '{missing[0]}'{more} missing", "Download it again.")


def config_beside(checkpoint: Path) -> Path | None:
    """The folder ``NAME`` beside ``NAME.safetensors`` with a model's configurations, which other widths need."""
    folder = checkpoint.with_suffix("")
    return folder if (folder / "model_index.json").is_file() else None


def stated_size(checkpoint: Path) -> int | None:
    """The resolution in a ``.safetensors`` file's header (ModelSpec: ``1024x1024``); None where there is none."""
    if checkpoint.suffix.lower() != ".safetensors" or not checkpoint.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(checkpoint), "pt") as file:
            text = (file.metadata() or {}).get("modelspec.resolution", "")
    except (SafetensorError, OSError):
        return None
    sides = [int(side) for side in re.findall(r"\d+", text)]
    return max(sides) if sides and 64 <= max(sides) <= 4096 else None


def made_for(checkpoint: Path) -> str:
    """Picture size and the like that a checkpoint was made for, where the configurations beside it say so; or ""."""
    folder = config_beside(checkpoint)
    if folder is None or not (folder / USAGE).is_file():
        return ""
    usage = json.loads((folder / USAGE).read_text(encoding="utf-8"))
    size = f"{usage['width']} × {usage['height']} px"
    return f"{size}, CFG scale {usage['guidance']:g}, Clip skip {usage['clip_skip']}"


def _shapes(path: Path) -> Shapes:
    if path.suffix.lower() != ".safetensors":
        return {key: tuple(value.shape) for key, value in _pickled(path).items() if isinstance(value, torch.Tensor)}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise HostError(f"{path.name} is truncated or damaged ({error})", "Download it again.") from error


def _tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Those whose keys start so."""
    if path.suffix.lower() != ".safetensors":
        return {key: value for key, value in _pickled(path).items() if key.startswith(prefix)}
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118


def _pickled(path: Path) -> dict[str, Any]:
    try:
        loaded = unpickle(path)
    except WeightsError as error:
        raise HostError(error.problem, error.hint) from error
    for _ in range(_MOST_NESTED):
        if not isinstance(loaded, dict) or "state_dict" not in loaded:
            break
        loaded = cast("dict[str, Any]", loaded)["state_dict"]
    if not isinstance(loaded, dict):
        raise HostError(f"{path.name} holds no state dict", _SUPPORTED)
    return cast("dict[str, Any]", loaded)


def unet_parameters(path: Path) -> int:
    """How many numbers the UNet in a checkpoint has. Raises HostError: the file is damaged."""
    return sum(math.prod(shape) for key, shape in _shapes(path).items() if key.startswith(_UNET))
