"""Pseudo-random numbers by name, the same in the official code's run and in the tests, whatever torch's version."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def numbers(name: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers of this shape; NumPy's RandomState is frozen since 1.17."""
    state = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(state.standard_normal(tuple(shape)).astype(np.float32))


def weights(shapes: Mapping[str, Sequence[int]], prefix: str = "") -> dict[str, Tensor]:
    """A state dict by key, each tensor scaled so that a layer keeps the size of what goes through it."""
    return {
        key: numbers(prefix + key, shape) / math.sqrt(math.prod(shape[1:]) if len(shape) > 1 else 1)
        for key, shape in shapes.items()
    }
