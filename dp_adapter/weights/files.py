"""Opens a weight file of any container as a flat dict of tensors, without executing code from it."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dp_adapter.errors import WeightsError

_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_AGAIN = "Download it again and compare its size with the page it came from."


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
        raise WeightsError(f"{path.name} is empty", _AGAIN)
    if path.suffix.lower() not in _PICKLES | {".safetensors"}:
        known = ", ".join(sorted(_PICKLES | {".safetensors"}))
        raise WeightsError(f"{path.name} is no weight file: its name ends in '{path.suffix}'", f"Known are {known}.")
    # The content decides, not the name: users rename .bin to .safetensors and back.
    tensors, metadata = _read_safetensors(path) if _is_safetensors(path) else (_read_pickle(path), {})
    if not tensors:
        raise WeightsError(f"{path.name} holds no tensors", "It is not a model checkpoint.")
    return WeightFile(path, tensors, metadata)


def require_finite(file: WeightFile) -> None:
    """Raises WeightsError naming the first tensor with NaN or infinite values."""
    for key, tensor in file.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{file.path.name} holds NaN or infinite values in '{key}'", f"It is damaged. {_AGAIN}")


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
    # Eight bytes of header length, then JSON; a zip starts with PK, a pickle with 0x80.
    return len(head) == 9 and head[8:] == b"{" and head[:2] != b"PK"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it has no iterator
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"{path.name} is truncated or damaged ({error})", _AGAIN) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and tarfile.is_tarfile(path):
        # torch's tar loader executed code even with weights_only before 2.6 (CVE-2025-32434).
        raise WeightsError(f"{path.name} is a tar archive", "Load a .safetensors or a current torch.save file instead.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            hint = "Nothing of it was run. Get this model as .safetensors from a source you trust."
            raise WeightsError(f"{path.name} contains code, not only weights", hint) from error
        raise WeightsError(f"{path.name} is not a weight file, or is damaged", _AGAIN) from error
    except (EOFError, RuntimeError, ValueError, KeyError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise WeightsError(f"{path.name} is truncated or damaged ({reason})", _AGAIN) from error
    return _flatten(cast(Mapping[Any, Any], loaded)) if isinstance(loaded, dict) else {}


def _flatten(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for key, value in nested.items():
        if isinstance(value, Tensor):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            flat |= _flatten(cast(Mapping[Any, Any], value), f"{prefix}{key}.")
    return flat
