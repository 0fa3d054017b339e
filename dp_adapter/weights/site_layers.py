"""The attention layers in adapters' files: ``PREFIX.N.NAME.weight`` with N odd, numbered in checkpoint order."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from dp_adapter.errors import WeightsError
from dp_adapter.weights.checkpoint import BASE_NAMES, SITES, Base
from dp_adapter.weights.files import WeightFile

_BLOCKS = {"down": 0, "up": 1, "mid": 2}


def checkpoint_order(path: str) -> tuple[int, ...]:
    """The key by which checkpoints sort the module paths of a UNet: down, up, middle."""
    return _BLOCKS[path.split("_", maxsplit=1)[0]], *map(int, re.findall(r"\d+", path))


def read_layers(file: WeightFile, prefix: str, names: tuple[str, ...], context: int, base: Base) -> list[list[Tensor]]:
    """The weights of every site, in checkpoint order and in the order of ``names``.

    Args:
        names: such as ``to_k_ip`` and ``to_v_ip``, which take tokens; a third takes the layer's own width.
        context: width of the tokens that the projection makes.

    Raises:
        WeightsError: another number of layers than the base has, or one that is incomplete or does not fit.
    """
    count = sum(key.startswith(f"{prefix}.") and key.endswith(f".{names[0]}.weight") for key in file.tensors)
    if count != SITES[base]:
        raise WeightsError(
            f"{file.path.name} has {count} attention layers; {BASE_NAMES[base]} adapters of this kind have "
            f"{SITES[base]}",
            "It is incomplete, or made for another base model.",
        )
    return [_layer(file.tensors, prefix, 2 * index + 1, names, context, file) for index in range(SITES[base])]


def _layer(
    tensors: Mapping[str, Tensor], prefix: str, number: int, names: tuple[str, ...], context: int, file: WeightFile
) -> list[Tensor]:
    found = [tensors.get(f"{prefix}.{number}.{name}.weight") for name in names]
    whole = [weight for weight in found if weight is not None and weight.ndim == 2]
    if len(whole) != len(names) or len({len(weight) for weight in whole}) > 1:
        raise WeightsError(f"{file.path.name}: layer {number} lacks a matching {' and '.join(names)}")
    for name, weight, width in zip(names, whole, (context, context, len(whole[0])), strict=False):
        if weight.shape[1] != width:
            raise WeightsError(
                f"{file.path.name}: {name} of layer {number} takes a width of {weight.shape[1]}, and is given {width}",
                "The file was put together from different models.",
            )
    return whole
