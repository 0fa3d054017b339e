"""Latents of StyleGAN2 and directions among them, as files: tensors or arrays alone, read without executing code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dp_adapter.errors import WeightsError
from dp_adapter.naming import first_line
from dp_adapter.weights.files import open_bare

LATENT = (18, 512)
"""Layers of StyleGAN2 at 1024 px and the width of its space W+."""
SUFFIXES = frozenset({".pt", ".pth", ".bin", ".npy", ".npz", ".safetensors"})
MAX_BYTES = 64 * 2**20
_HINT = "Give one as e4e writes it: [18, 512] or [1, 18, 512], the average latent added."


def read_latent(path: Path) -> Tensor:
    """A latent [1, 18, 512] in float32: the file's only array, or the only one of that shape.

    Raises:
        WeightsError: no such file, of another kind or damaged; not one latent; NaN or infinite values.
    """
    arrays = read_arrays(path)
    fitting = [array for array in arrays if tuple(array.shape) in {LATENT, (1, *LATENT)}]
    if len(fitting) != 1:
        shapes = ", ".join(str(list(array.shape)) for array in arrays[:5]) or "nothing"
        raise WeightsError(f"{path.name} holds {shapes}, not one latent of StyleGAN2", _HINT)
    latent = fitting[0].float().reshape(1, *LATENT)
    if not bool(torch.isfinite(latent).all()):
        raise WeightsError(f"{path.name} holds NaN or infinite values", "It is damaged; encode the photo again.")
    return latent


def read_arrays(path: Path) -> list[Tensor]:
    """Every array of numbers in a file.

    Raises:
        WeightsError: no such file, too large, of another kind, or damaged.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise WeightsError(f"{path.name} is no file of arrays", f"Known are {', '.join(sorted(SUFFIXES))}.")
    if not path.is_file():
        raise WeightsError(f"There is no file {path}", "Check the name.")
    if path.stat().st_size > MAX_BYTES:
        raise WeightsError(f"{path.name} is larger than {MAX_BYTES >> 20} MiB", "A latent has 36 kB.")
    if path.suffix.lower() not in {".npy", ".npz"}:
        return open_bare(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (size := sum(one.file_size for one in archive.infolist())) > MAX_BYTES:
                    raise ValueError(f"{size / 2**20:.0f} MiB unpacked")
        loaded: Any = np.load(path, allow_pickle=False)
        arrays: list[Any] = [loaded] if isinstance(loaded, np.ndarray) else list(loaded.values())
        return [torch.as_tensor(array.astype(np.float32)) for array in arrays if array.dtype.kind in "fiu"]
    except Exception as error:  # damaged bytes make NumPy raise anything
        problem = f"{path.name} is damaged or no array of numbers ({first_line(error, 120)})"
        raise WeightsError(problem, _HINT) from error
