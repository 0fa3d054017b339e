"""Opens a weight file of any container as a flat dict of tensors, without executing code from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dp_adapter.errors import WeightsError
from dp_adapter.naming import shorten
from dp_adapter.pickles import AGAIN, unpickle

SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt"})
_DEEPEST = 8  # dicts in one another; one may hold itself
_MOST_ENTRIES = 200_000


@dataclass(frozen=True)
class WeightFile:
    """Tensors of a file under dotted keys (nested dicts are joined), and its safetensors metadata."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def open_weights(path: Path) -> WeightFile:
    """Reads a ``.safetensors`` or ``torch.save`` file, memory-mapped where the container allows.

    Raises:
        WeightsError: missing, empty, truncated, of another kind, holding code, or holding no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"There is no file {path}", "Check the name, or list the models that were found.")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path.name} is empty", AGAIN)
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join(sorted(SUFFIXES))
        raise WeightsError(f"{path.name} is no weight file: its name ends in '{path.suffix}'", f"Known are {known}.")
    # The content decides, not the name: users rename .bin to .safetensors and back.
    tensors, metadata = _read_safetensors(path) if _is_safetensors(path) else (_read_pickle(path), {})
    if not tensors:
        raise WeightsError(f"{path.name} holds no tensors", "It is not a model checkpoint.")
    return WeightFile(path, tensors, metadata)


def open_bare(path: Path) -> list[Tensor]:
    """The tensors of a file, which may also be one tensor alone, without their names. Raises as `open_weights`."""
    if _is_safetensors(path):
        return list(_read_safetensors(path)[0].values())
    loaded = unpickle(path)
    if isinstance(loaded, Tensor):
        return [loaded.detach()]
    return list(_flatten(cast(Mapping[Any, Any], loaded)).values()) if isinstance(loaded, dict) else []


def require_finite(file: WeightFile) -> None:
    """Raises WeightsError naming the first tensor with NaN or infinite values, or with none."""
    for key, tensor in file.tensors.items():
        if tensor.is_meta:
            raise WeightsError(f"{file.path.name} holds the shape of '{shorten(key, 80)}' without its numbers", AGAIN)
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # 8-bit floats have no order, 16-bit ones none on the CPU before torch 2.2
        values = tensor.float() if tensor.element_size() < 4 and tensor.device.type == "cpu" else tensor
        # Both ends are NaN where any value is; a twentieth of the time of isfinite, and no memory.
        low, high = torch.aminmax(values)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise WeightsError(f"{file.path.name} holds NaN or infinite values in '{key}'", f"It is damaged. {AGAIN}")


def require_version(file: WeightFile, newest: int) -> None:
    """Raises WeightsError where a file of our own formats was written by a newer extension."""
    version = file.metadata.get("version", "")
    if not re.fullmatch(r"[0-9]{1,9}", version) or int(version) > newest:
        told = shorten(version, 20) or "unknown"
        raise WeightsError(
            f"{file.path.name} was written in version {told} of the format; this extension reads up to {newest}",
            "Update the extension.",
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file as hex; remembered until the file's size or modification time changes."""
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: str, _size: int, _modified: int) -> str:
    sha = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    # Eight bytes of header length, then JSON. Neither a zip nor a pickle of torch has a brace there.
    return len(head) == 9 and head[8:] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it has no iterator
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"{path.name} is truncated or damaged ({error})", AGAIN) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    loaded = unpickle(path)
    return _flatten(cast(Mapping[Any, Any], loaded)) if isinstance(loaded, dict) else {}


def _flatten(nested: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors by dotted key. Raises WeightsError where dicts hold themselves or one another without end."""
    flat: dict[str, Tensor] = {}
    for number, (key, value) in enumerate(_walk(nested)):
        if number == _MOST_ENTRIES:
            raise WeightsError("This file's tensors stand in too many nested dicts", "It is not a model checkpoint.")
        if isinstance(value, Tensor):
            flat[key] = value
    return flat


def _walk(nested: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    for key, value in nested.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _walk(cast(Mapping[Any, Any], value), f"{prefix}{key}.", depth + 1)
