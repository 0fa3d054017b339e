"""Holds an adapter that was read to what it says of itself, by one run of its recipe on shapes alone.

A file's tensors may each be what their network takes, and not fit one another. Nothing is computed: networks and
features are torch's ``meta`` tensors, which have shapes and no numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.weights.checkpoint import Checkpoint, Encoder, RecipeOptions
from dp_adapter.weights.w_plus_latents import LATENT

_FIELDS: Mapping[Encoder, Mapping[str, tuple[int, ...]]] = {
    "arcface": {"faceid": ()},
    "arcface-raw": {"faceid": ()},
    "sface": {"faceid": ()},
    "clip-embeds": {"image_embeds": ()},
    "clip-hidden": {"clip_hidden": (257,), "clip_hidden_uncond": (257,)},
    "clip-parsed": {"clip_hidden": (257,), "clip_hidden_uncond": (257,)},
    "clip-person": {"clip_person": (257,)},
    "eva": {"eva_hidden": (5, 577)},
    "transface": {"face_patches": (196,)},
    "w-plus": {"w_plus": LATENT[:1]},
}
"""Shapes [n, ..., width] of what an encoder gives, between n and the width, by field of ``Features``."""


def try_recipe(checkpoint: Checkpoint) -> None:
    """Makes tokens of photos without numbers.

    Raises:
        ValueError: the tokens are none for the adapter's layers. Others: as a network raises whose parts do not fit.
    """
    adapter = checkpoint.adapter
    widths = {adapter.site(index).context for index in range(len(adapter.sites))}
    if len(widths) > 1:
        raise ValueError(f"its layers take tokens of the widths {sorted(widths)}")
    if not checkpoint.tokens_per_photo:
        return
    without_numbers = Adapter(_empty_copy(adapter.projection), [adapter.site(at) for at in range(len(adapter.sites))])
    try:
        with torch.no_grad():
            tokens = checkpoint.recipe(without_numbers, _features(checkpoint), RecipeOptions())
    except WeightsError as error:  # which knows no file
        raise ValueError(error.problem) from error
    for made in (tokens.cond, tokens.uncond):
        if made.ndim != 2 or not len(made) or made.shape[1] != adapter.context:
            raise ValueError(f"it makes tokens {list(made.shape)} for layers that take {adapter.context}")


def _features(checkpoint: Checkpoint) -> Features:
    shapes: dict[str, tuple[int, ...]] = {
        field: (*between, width)
        for encoder, width in checkpoint.features_width.items()
        for field, between in _FIELDS.get(encoder, {}).items()
    }
    shapes |= checkpoint.shapes
    return Features(**{field: torch.empty(1, *shape, device="meta") for field, shape in shapes.items()})


def _empty_copy(net: torch.nn.Module) -> torch.nn.Module:
    """The network with shapes in place of its numbers."""
    empty: dict[int, Tensor] = {id(one): torch.empty_like(one, device="meta") for one in net.buffers()}
    for one in net.parameters():
        empty[id(one)] = torch.nn.Parameter(torch.empty_like(one, device="meta"), requires_grad=False)
    return copy.deepcopy(net, empty)
