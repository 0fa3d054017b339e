"""ResAdapter's files: a LoRA of the samplers' convolutions, and beside it the residual blocks' group norms.

Both have the same names in every published version (``pytorch_lora_weights.safetensors`` and
``diffusion_pytorch_model.safetensors``), so a version is a folder. Layout: bytedance/res-adapter, the weights in its
repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dp_adapter.core.res_adapter import ConvLowRank, SizeCompanion
from dp_adapter.errors import WeightsError
from dp_adapter.user_files import list_folder
from dp_adapter.weights.checkpoint import Base
from dp_adapter.weights.damage import refuse_damage, require_plain
from dp_adapter.weights.files import SUFFIXES, open_weights, require_finite

_CONV = re.compile(
    r"lora_unet_(down|up)_blocks_(\d)_(down|up)samplers_0_conv\.(alpha|lora_down\.weight|lora_up\.weight)"
)
_NORM = re.compile(r"((?:(?:down|up)_blocks\.\d|mid_block)\.resnets\.\d\.norm[12])\.(weight|bias)")
_ONLY_SD15 = "down_blocks.2.downsamplers.0.conv"  # SDXL has two downsamplers


@dataclass(frozen=True)
class ResAdapter:
    """A ResAdapter as it was read; ``paths`` are its files."""

    paths: tuple[Path, ...]
    base: Base
    companion: SizeCompanion


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the convolutions of a ResAdapter and nothing else."""
    return bool(tensors) and all(_CONV.fullmatch(key) for key in tensors)


def is_norms(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the norms of a ResAdapter and nothing else."""
    return bool(tensors) and all(_NORM.fullmatch(key) for key in tensors)


def read(path: Path) -> ResAdapter:
    """A ResAdapter from its folder, or from one of its files with the other one beside it.

    Raises:
        WeightsError: there is no ResAdapter, or it is incomplete.
    """
    folder = path if path.is_dir() else path.parent
    files = [one for one in list_folder(folder) if one.suffix.lower() in SUFFIXES]
    if not path.is_dir():
        files = [path, *(one for one in files if one != path)]
    lora = norms = None
    paths: list[Path] = []
    for one in files:
        opened = open_weights(one)
        tensors = opened.tensors
        if lora is None and is_lora(tensors):
            lora = tensors
        elif norms is None and is_norms(tensors):
            norms = tensors
        elif one == path:
            raise WeightsError(f"{path.name} is no ResAdapter", "Choose its folder, or one of its two files.")
        else:
            continue
        require_plain(one, tensors)
        require_finite(opened)
        paths.append(one)
    if lora is None:
        raise WeightsError(
            f"There is no LoRA of a ResAdapter in {folder.name}",
            "Put pytorch_lora_weights.safetensors and diffusion_pytorch_model.safetensors into a folder of their own.",
        )
    with refuse_damage(paths[0], "a ResAdapter"):
        convs = _convs(lora, folder)
        base: Base = "sd15" if _ONLY_SD15 in convs else "sdxl"
        return ResAdapter(tuple(paths), base, SizeCompanion(convs, _norms(norms or {}, folder)))


def _convs(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, ConvLowRank]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _CONV.fullmatch(key)
        assert match is not None
        side, block, kind, name = match.groups()
        parts.setdefault(f"{side}_blocks.{block}.{kind}samplers.0.conv", {})[name] = tensor
    found: dict[str, ConvLowRank] = {}
    for place, part in parts.items():
        down, up = part.get("lora_down.weight"), part.get("lora_up.weight")
        if down is None or up is None or not _fit(down, up):
            raise WeightsError(f"The ResAdapter in {folder.name} is incomplete at {place}", "Download it again.")
        alpha = float(part["alpha"]) if "alpha" in part else float(down.shape[0])
        found[place] = ConvLowRank(down, up, alpha / down.shape[0])
    return found


def _fit(down: Tensor, up: Tensor) -> bool:
    """Whether they are [r, in, k, k] and [out, r, 1, 1] of numbers that a convolution takes."""
    shapes = down.ndim == 4 and up.ndim == 4 and up.shape[1:] == (len(down), 1, 1) and down.shape[2] == down.shape[3]
    return shapes and down.is_floating_point() and up.is_floating_point()


def _norms(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _NORM.fullmatch(key)
        assert match is not None
        parts.setdefault(match[1], {})[match[2]] = tensor
    for place, part in parts.items():
        if (
            len(part) != 2
            or {one.ndim for one in part.values()} != {1}
            or len({one.shape for one in part.values()}) != 1
        ):
            raise WeightsError(f"The ResAdapter in {folder.name} is incomplete at {place}", "Download it again.")
    return {place: (part["weight"], part["bias"]) for place, part in parts.items()}
