"""Whether an adapter's layers are those of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.types import Site
from dp_adapter.errors import HostError


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


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """(out, in) features of a linear layer. Not its weight's shape where it says them itself: quantised layers pack
    their weights, PEFT's have none of their own. Forge's NF4 and GGUF layers say them by their weight only.
    """
    if hasattr(linear, "in_features"):
        return cast(int, linear.out_features), cast(int, linear.in_features)
    weight = cast(Any, linear).weight
    out, into = weight.quant_state.shape if hasattr(weight, "quant_state") else weight.shape
    return out, into
