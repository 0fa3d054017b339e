"""What every host does with a call of its UNet and with an adapter that may not fit it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.injection import Injection
from dp_adapter.core.pathways import SitePathways
from dp_adapter.core.text.text_side import PersonWords, TextContexts
from dp_adapter.core.types import Row, Site
from dp_adapter.errors import HostError


def doubled(values: Any, rows: int) -> Any:
    """Every tensor whose first side is the batch, twice along it; containers are walked."""
    if isinstance(values, Tensor):
        return torch.cat([values, values]) if values.ndim and len(values) == rows else values
    if isinstance(values, dict):
        return {key: doubled(value, rows) for key, value in cast(dict[str, Any], values).items()}
    if isinstance(values, tuple | list):
        walked = [doubled(value, rows) for value in cast(Sequence[Any], values)]
        return tuple(walked) if isinstance(values, tuple) else walked
    return values


def require_rows(rows: Sequence[Row], count: int) -> tuple[Row, ...]:
    """The announced rows; raises HostError unless they are as many as the UNet was called with."""
    if len(rows) != count:
        raise HostError(f"The UNet was called with {count} rows, but {len(rows)} were announced")
    return tuple(rows)


def progress_of(timestep: float | Tensor, train_timesteps: int) -> float:
    """Progress in [0, 1] of a call; its rows share one timestep, a number, [], [1] or [R], which may be fractional."""
    t = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
    return min(max(1 - t / (train_timesteps - 1), 0.0), 1.0)


def require_fit(sites: Sequence[Site], adapter: Adapter, widths: Callable[[Site], tuple[int, int]]) -> None:
    """Raises HostError unless every layer of the adapter has its site's inner and context width.

    Args:
        widths: (inner channels I, token width D) of the model's attention at a site.
    """
    if not adapter.sites:  # it acts on the text side only
        return
    if len(sites) != len(adapter.sites):
        names = {16: "SD1.5", 70: "SDXL"}
        raise HostError(
            f"The adapter is made for {names.get(len(adapter.sites), 'another model')}, the loaded model is "
            f"{names.get(len(sites), 'another')}",
            "Choose an adapter for this base model.",
        )
    for site in sites:
        module, have = adapter.site(site.index), widths(site)
        if isinstance(module, SiteAdapter):
            made = (module.to_k.out_features, module.to_k.in_features)
        else:
            made = (module.linear.out_features, have[1])
        if made != have:
            raise HostError(
                f"Layer {2 * site.index + 1} of the adapter is {made[0]}x{made[1]}, the model's {site.name} "
                f"{have[0]}x{have[1]}",
                "The adapter is made for another base model, or its layers are in another order.",
            )


def follow_loads(stack: ExitStack, attn2: nn.Module, pathways: SitePathways) -> None:
    """Until ``stack`` closes, a state dict that is loaded into an attention makes its pathways start anew."""

    def loaded(*_: object) -> None:
        pathways.forget()

    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        layer: Any = attn2.get_submodule(name)
        stack.callback(layer.register_load_state_dict_post_hook(loaded).remove)


def text_side_of(injection: Injection, words: PersonWords | None) -> TextContexts | None:
    """What the identities of an injection change in the texts; None for nothing."""
    people = [None if one.on_text is None else (one.person, one.on_text) for one in injection.identities]
    return TextContexts(people, words) if any(people) else None


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """(out, in) features of a linear layer. Not its weight's shape where it says them itself: quantised layers pack
    their weights, PEFT's have none of their own. Forge's NF4 and GGUF layers say them by their weight only.
    """
    if hasattr(linear, "in_features"):
        return cast(int, linear.out_features), cast(int, linear.in_features)
    weight = cast(Any, linear).weight
    out, into = weight.quant_state.shape if hasattr(weight, "quant_state") else weight.shape
    return out, into


def lacks_memory(error: Exception) -> bool:
    """Whether there was not enough memory, on whichever device: torch has no one type for that."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words
