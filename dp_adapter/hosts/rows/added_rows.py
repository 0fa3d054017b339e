"""Further rows behind those of a UNet's call, in all its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dp_adapter.core.types import Row
from dp_adapter.errors import HostError


def require_rows(rows: Sequence[Row], count: int) -> tuple[Row, ...]:
    """The announced rows; raises HostError unless they are as many as the UNet was called with."""
    if len(rows) != count:
        raise HostError(f"The UNet was called with {count} rows, but {len(rows)} were announced")
    return tuple(rows)


def repeat_rows(values: Any, rows: int, numbers: Sequence[int]) -> Any:
    """Every tensor whose first side is the batch, with these of its rows once more behind; containers are walked."""
    if isinstance(values, Tensor):
        return torch.cat([values, values[list(numbers)]]) if values.ndim and len(values) == rows else values
    if isinstance(values, dict):
        return {key: repeat_rows(value, rows, numbers) for key, value in cast(dict[str, Any], values).items()}
    if isinstance(values, tuple | list):
        walked = [repeat_rows(value, rows, numbers) for value in cast(Sequence[Any], values)]
        return tuple(walked) if isinstance(values, tuple) else walked
    return values


def append_rows(values: Any, rows: int, source: int | None, more: int) -> Any:
    """Every tensor whose first side is the batch, with ``more`` rows like ``source`` behind; containers are walked.

    Args:
        source: number of a row; None for zeros.
    """
    if isinstance(values, Tensor):
        if not values.ndim or len(values) != rows:
            return values
        one = values[:1] * 0 if source is None else values[source : source + 1]
        return torch.cat([values, one.expand(more, *values.shape[1:])])
    if isinstance(values, dict):
        return {key: append_rows(value, rows, source, more) for key, value in cast(dict[str, Any], values).items()}
    if isinstance(values, tuple | list):
        walked = [append_rows(value, rows, source, more) for value in cast(Sequence[Any], values)]
        return tuple(walked) if isinstance(values, tuple) else walked
    return values
