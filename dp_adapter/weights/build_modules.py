"""Modules built from the shapes of a file's tensors, which become their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import LowRank, SiteAdapter
from dp_adapter.core.projection import State
from dp_adapter.errors import WeightsError
from dp_adapter.weights.damage import explain, name_dtype
from dp_adapter.weights.files import WeightFile

Module = TypeVar("Module", bound=nn.Module)


def build_module(like: Callable[[State], Module], state: State, file: WeightFile, what: str) -> Module:
    """A network from the shapes of its state, whose weights are these tensors themselves.

    Args:
        like: makes the network from a state, such as its class.
        what: it is, for the message.

    Raises:
        WeightsError: the state is incomplete, or of something else.
    """
    try:
        return assign_weights(like, state)
    except (RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(f"{file.path.name}: {what} is incomplete ({explain(error)})") from error


def assign_weights(like: Callable[[State], Module], state: State) -> Module:
    """As `build_module`, for what is known to be complete.

    Raises:
        ValueError: numbers that are no floats where the network has some.
        RuntimeError, KeyError: as torch says it.
    """
    with torch.device("meta"):  # no time and memory for random numbers that are replaced
        net = like(state)
    for key, empty in net.state_dict().items():
        if key in state and empty.is_floating_point() and not state[key].is_floating_point():
            raise ValueError(f"'{key}' holds {name_dtype(state[key])}, not floating point numbers")
    net.load_state_dict({key: value.detach() for key, value in state.items()}, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def build_projection(like: Callable[[State], Module], state: State, file: WeightFile) -> Module:
    """A projection in float32, likewise."""
    floats = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return build_module(like, floats, file, "its image projection")


def build_site(k: Tensor, v: Tensor) -> SiteAdapter:
    """A site whose weights are the file's own tensors, not copies."""
    return assign_weights(lambda _: SiteAdapter(k.shape[1], k.shape[0]), {"to_k.weight": k, "to_v.weight": v})


def build_low_rank(layer: int, linear: str, down: Tensor, up: Tensor) -> LowRank:
    """One layer of a LoRA. Raises ValueError where ``up`` [out, r] and ``down`` [r, in] are no such pair."""
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
        raise ValueError(f"{linear} of layer {layer} of its LoRA has {list(up.shape)} and {list(down.shape)}")
    for part in (down, up):
        if not part.is_floating_point():
            raise ValueError(f"{linear} of layer {layer} of its LoRA holds {name_dtype(part)}")
    return LowRank(layer, linear, down, up)
