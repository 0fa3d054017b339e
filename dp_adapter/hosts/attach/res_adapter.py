"""Puts a size companion into a UNet for the duration of a ``with``, by hooks: weights stay where hosts put them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.core.res_adapter import ConvLowRank, PathMap, SizeCompanion
from dp_adapter.errors import HostError

_RESNET = re.compile(r"(down|up)_blocks\.(\d)\.resnets\.(\d)\.norm([12])")
_MIDDLE = re.compile(r"mid_block\.resnets\.(\d)\.norm([12])")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d)\.(?:down|up)samplers\.0\.conv")
_NORMS = {"1": "in_layers.0", "2": "out_layers.0"}


def apply_companion(
    stack: ExitStack, companion: tuple[SizeCompanion, float] | None, unet: nn.Module, place: PathMap | None = None
) -> None:
    """The UNet's layers with the companion's weights, until ``stack`` closes.

    Args:
        companion: with its strength s: convolutions get s times their LoRA, norms go s of the way to its own.
        place: from diffusers' path to the UNet's; None for diffusers' own UNet.

    Raises:
        HostError: the UNet lacks a layer, or has it in another width.
    """
    if companion is None or companion[1] == 0:
        return
    weights, strength = companion
    for path, conv in weights.convs.items():
        module = _layer(unet, path, place)
        _require(cast("int", cast(Any, module).out_channels) == len(conv.up), path)
        stack.callback(module.register_forward_hook(_adding(conv, strength)).remove)
    for path, norm in weights.norms.items():
        module = _layer(unet, path, place)
        _require(cast("int", cast(Any, module).num_channels) == len(norm[0]), path)
        stack.callback(module.register_forward_hook(_renormed(*norm, strength)).remove)


def ldm_place(unet: nn.Module) -> PathMap:
    """Where ldm, sgm and Forge have the layers: three blocks a level, the sampler last in the level's third."""

    def place(path: str) -> str:
        if match := _MIDDLE.fullmatch(path):
            return f"middle_block.{2 * int(match[1])}.{_NORMS[match[2]]}"
        if match := _RESNET.fullmatch(path):
            side, block, number = match[1], int(match[2]), int(match[3])
            at = f"input_blocks.{3 * block + number + 1}" if side == "down" else f"output_blocks.{3 * block + number}"
            return f"{at}.0.{_NORMS[match[4]]}"
        match = _SAMPLER.fullmatch(path)
        assert match is not None
        block = int(match[2])
        if match[1] == "down":
            return f"input_blocks.{3 * block + 3}.0.op"
        level = f"output_blocks.{3 * block + 2}"  # residual block, transformer where there is one, upsampler
        return f"{level}.{len(list(unet.get_submodule(level).children())) - 1}.conv"

    return place


def _layer(unet: nn.Module, path: str, place: PathMap | None) -> nn.Module:
    try:
        return unet.get_submodule(path if place is None else place(path))
    except AttributeError:
        raise HostError(f"The model has no layer {path}, which the ResAdapter changes", _OTHER) from None


_OTHER = "Choose a ResAdapter for this base model, or none."


def _require(fits: bool, path: str) -> None:
    if not fits:
        raise HostError(f"The ResAdapter's {path} has another width than the model's", _OTHER)


def _adding(conv: ConvLowRank, strength: float) -> Callable[..., Tensor]:
    there = [conv]  # goes where the states are once, not in every step

    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = args[0]
        if (there[0].down.device, there[0].down.dtype) != (x.device, x.dtype):
            there[0] = conv.to(x)
        return output + strength * there[0].term(x, module.stride, module.padding).to(output.dtype)

    return hook


def _renormed(weight: Tensor, bias: Tensor, strength: float) -> Callable[..., Tensor]:
    there = [weight.float(), bias.float()]

    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = args[0]
        if there[0].device != x.device:
            there[:] = [one.to(x.device) for one in there]
        own: Tensor = F.group_norm(x.float(), module.num_groups, there[0], there[1], module.eps)
        return output + strength * (own.to(output.dtype) - output)

    return hook
