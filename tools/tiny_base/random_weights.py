"""Random weights that are the same numbers on every machine and in every version of torch."""

from __future__ import annotations

import math
import zlib
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn


def uniform(name: str, seed: int, shape: tuple[int, ...], std: float) -> Tensor:
    """Uniform numbers of a standard deviation, a function of the name, the seed and the shape alone.

    Uniform and not normal: its generation is exact arithmetic, without a logarithm that differs between libraries.
    """
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    numbers = (2 * generator.random(shape) - 1) * (math.sqrt(3) * std)
    return torch.tensor(numbers, dtype=torch.float32)


def modules_of(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules with their paths, with the type that torch's own generator lacks."""
    return list(cast(Any, root).named_modules())


@torch.no_grad()
def fill(module: nn.Module, seed: int, prefix: str = "") -> None:
    """Norms to one, biases to zero, everything else to random numbers that keep the variance (std 1 / sqrt(fan in))."""
    for key, parameter in module.named_parameters():
        # transformers 5.6 took this level out of the names; the numbers must not depend on that.
        name = prefix + key.removeprefix("text_model.")
        if parameter.ndim > 1:
            fan_in = 1 if "embedding." in name and "time_" not in name else parameter[0].numel()
            parameter.copy_(uniform(name, seed, tuple(parameter.shape), 1 / math.sqrt(fan_in)))
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
