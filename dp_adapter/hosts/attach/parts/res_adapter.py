"""Puts a size companion into a UNet for the duration of a ``with``, by hooks: weights stay where hosts put them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.core.res_adapter import ConvLowRank, LayerPath, SizeCompanion
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.host_unet import HostUNet
from dp_adapter.hosts.attach.parts.part import Part

_RESNET = re.compile(r"(down|up)_blocks\.(\d)\.resnets\.(\d)\.norm([12])")
_MIDDLE = re.compile(r"mid_block\.resnets\.(\d)\.norm([12])")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d)\.(?:down|up)samplers\.0\.conv")
_NORMS = {"1": "in_layers.0", "2": "out_layers.0"}


class ResAdapterPart(Part):
    """The UNet's layers with a size companion's weights.

    Args:
        companion: with its strength s: convolutions get s times their LoRA, norms go s of the way to its own.
    """

    def __init__(self, host: HostUNet, companion: tuple[SizeCompanion, float] | None) -> None:
        self._host, self._companion = host, companion

    def register(self, stack: ExitStack) -> None:
        if self._companion is None or self._companion[1] == 0:
            return
        weights, strength = self._companion
        for path, conv in weights.convs.items():
            module = _layer(self._host, path)
            _require(cast("int", cast(Any, module).out_channels) == len(conv.up), path)
            stack.callback(module.register_forward_hook(_adding(conv, strength)).remove)
        for path, norm in weights.norms.items():
            module = _layer(self._host, path)
            _require(cast("int", cast(Any, module).num_channels) == len(norm[0]), path)
            stack.callback(module.register_forward_hook(_renormed(*norm, strength)).remove)


def ldm_layer_path(unet: nn.Module) -> LayerPath:
    """Where ldm, sgm and Forge have the layers: three blocks a level, the sampler last in the level's third."""

    def layer_path(path: str) -> str:
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

    return layer_path


def _layer(host: HostUNet, path: str) -> nn.Module:
    try:
        return host.unet.get_submodule(path if host.layer_path is None else host.layer_path(path))
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
