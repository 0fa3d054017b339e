"""Applies the LoRA that came inside a checkpoint, for the duration of a ``with``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import LowRank
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.adapter_fit import linear_shape
from dp_adapter.hosts.attach.host_unet import HostUNet
from dp_adapter.hosts.attach.parts.part import Part


class CheckpointLora(Part):
    """W += weight * up @ down for every entry, afterwards the original parameters again.

    A plain ``nn.Linear`` gets a merged weight, which costs nothing per step; any other layer (PEFT, quantised,
    offloaded) keeps its weights and gets the low-rank product added to its output. So does every layer of a host that
    writes to the weights itself.
    """

    def __init__(self, host: HostUNet, lora: Sequence[tuple[LowRank, float]]) -> None:
        self._host, self._lora = host, lora

    def register(self, stack: ExitStack) -> None:
        merged: dict[nn.Linear, list[tuple[LowRank, float]]] = {}
        for entry, weight in self._lora:
            module = self._host.linear(entry)
            if weight == 0:
                continue
            _require_shape(entry, linear_shape(module))
            mergeable = type(module) is nn.Linear and not module.weight.is_meta and not hasattr(module, "_hf_hook")
            if self._host.merges_lora and mergeable:
                merged.setdefault(cast(nn.Linear, module), []).append((entry, weight))
            else:
                stack.callback(module.register_forward_hook(_adding(entry, weight)).remove)
        for linear, entries in merged.items():
            stack.enter_context(_merging(linear, entries))


@contextmanager
def _merging(linear: nn.Linear, entries: Sequence[tuple[LowRank, float]]) -> Generator[None]:
    """A layer with the merged weight. What is loaded into it meanwhile goes into its own weight, and stays there."""
    layer = cast(Any, linear)
    own: list[Tensor] = []

    def merge(*_: object) -> None:
        own[:] = [layer.weight]
        layer.weight = nn.Parameter(_merged(own[0], entries), requires_grad=False)

    def restore(*_: object) -> None:
        layer.weight = own[0]

    merge()
    with ExitStack() as stack:
        stack.callback(restore)
        stack.callback(layer._register_load_state_dict_pre_hook(restore).remove)
        stack.callback(layer.register_load_state_dict_post_hook(merge).remove)
        yield


def _merged(original: Tensor, entries: Sequence[tuple[LowRank, float]]) -> Tensor:
    total = original.detach().float()
    for entry, weight in entries:
        total = total + weight * (entry.up.to(total.device).float() @ entry.down.to(total.device).float())
    return total.to(original.dtype)


def _adding(entry: LowRank, weight: float) -> Callable[..., Tensor]:
    moved: list[tuple[Tensor, Tensor]] = []

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = args[0]
        if not moved or moved[0][0].device != x.device or moved[0][0].dtype != x.dtype:
            moved[:] = [(entry.down.to(x), entry.up.to(x))]
        down, up = moved[0]
        return output + weight * torch.nn.functional.linear(torch.nn.functional.linear(x, down), up)

    return hook


def _require_shape(entry: LowRank, shape: tuple[int, int]) -> None:
    if (entry.up.shape[0], entry.down.shape[1]) != shape:
        have = f"{entry.up.shape[0]}x{entry.down.shape[1]}"
        raise HostError(
            f"The adapter's LoRA for layer {entry.layer} ({entry.linear}) is {have}, the model's layer "
            f"{shape[0]}x{shape[1]}",
            "The adapter was made for another base model.",
        )
