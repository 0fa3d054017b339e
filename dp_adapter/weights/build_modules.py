"""Modules built from the shapes of a file's tensors, which become their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import SiteAdapter
from dp_adapter.core.projection import State
from dp_adapter.errors import WeightsError
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
        with torch.device("meta"):  # no time and memory for random numbers that are replaced
            net = like(state)
        net.load_state_dict(dict(state), strict=True, assign=True)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{file.path.name}: {what} is incomplete ({reason})") from error
    return net.eval().requires_grad_(False)


def build_projection(like: Callable[[State], Module], state: State, file: WeightFile) -> Module:
    """A projection in float32, likewise."""
    return build_module(like, {key: value.float() for key, value in state.items()}, file, "its image projection")


def build_site(k: Tensor, v: Tensor) -> SiteAdapter:
    """A site whose weights are the file's own tensors, not copies."""
    with torch.device("meta"):
        site = SiteAdapter(k.shape[1], k.shape[0])
    site.load_state_dict({"to_k.weight": k, "to_v.weight": v}, assign=True)
    return site.eval().requires_grad_(False)
