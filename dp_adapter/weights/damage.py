"""Damaged and foreign weight files: what tensors are refused, and how what a reader raises becomes a sentence."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dp_adapter.errors import DPAdapterError, WeightsError
from dp_adapter.naming import shorten

_HINT = "It is damaged, or was made for another program: get it again."


def require_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises WeightsError naming the first tensor that is no dense array of real numbers as large as its shape says."""
    for key, tensor in tensors.items():
        if wrong := _find_wrong(tensor):
            raise WeightsError(f"{path.name} holds {wrong} in '{shorten(key, 80)}'", _HINT)


def _find_wrong(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        return name_dtype(tensor)
    if not tensor.numel():
        return "no numbers"
    # one number that stands for many is small in the file and as large as it likes once it is computed with
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "fewer numbers than its shape says"
    return ""


def name_dtype(tensor: Tensor) -> str:
    """The kind of its numbers in words: ``int8``, ``sparse float32``."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return dtype if tensor.layout == torch.strided else f"sparse {dtype}"


@contextmanager
def refuse_damage(path: Path, title: str) -> Generator[None, None, None]:
    """Whatever a reader raises becomes a WeightsError, which keeps the cause.

    Readers take shapes as they expect them; a file may hold any, and each way to fail on them would be a check more.

    Args:
        title: what the file is read as.
    """
    try:
        yield
    except DPAdapterError:
        raise
    except Exception as error:
        problem = f"{path.name} cannot be read as {title}: its tensors do not fit together ({explain(error)})"
        raise WeightsError(problem, _HINT) from error


def explain(error: Exception) -> str:
    """What an error says in one line, which torch writes last; of the system's errors without the path."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = said.strip().splitlines()
    return shorten(lines[-1].strip(), 200) if lines else type(error).__name__
