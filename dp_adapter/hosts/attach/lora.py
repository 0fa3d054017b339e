"""Applies the LoRA that came inside a checkpoint, for the duration of a ``with``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import LowRank
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.calls import linear_shape

Find = Callable[[LowRank], nn.Module]


def apply_lora(stack: ExitStack, lora: Sequence[tuple[LowRank, float]], find: Find, *, merge: bool = True) -> None:
    """W += weight * up @ down for every entry until ``stack`` closes, then the original parameters again.

    A plain ``nn.Linear`` gets a merged weight, which costs nothing per step; any other layer (PEFT, quantised,
    offloaded) keeps its weights and gets the low-rank product added to its output.

    Args:
        find: the module that an entry belongs to.
        merge: False adds the product to every layer's output, for hosts that write to the weights themselves.

    Raises:
        HostError: shapes do not fit the model.
    """
    merged: dict[nn.Linear, list[tuple[LowRank, float]]] = {}
    for entry, weight in lora:
        module = find(entry)
        if weight == 0:
            continue
        _require_shape(entry, linear_shape(module))
        if merge and type(module) is nn.Linear and not module.weight.is_meta and not hasattr(module, "_hf_hook"):
            merged.setdefault(module, []).append((entry, weight))
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
