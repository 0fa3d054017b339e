"""Damaged files of a run or of its data, told in words; and what is unpacked of them, bounded."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import TrainingError
from dp_adapter.naming import first_line

MOST_BYTES = 64 * 2**20
"""Of the arrays of a sample, unpacked: a hundred times what the encoders make."""


@contextmanager
def tell_damage(problem: str, hint: str) -> Generator[None, None, None]:
    """Turns whatever the content of a file makes go wrong into a TrainingError: the problem, and why."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:  # damaged bytes make decoders raise anything
        reason = first_line(error)
        if isinstance(error, KeyError):
            reason = f"it has no {reason}"
        raise TrainingError(f"{problem} ({reason})", hint) from error


def read_member(archive: zipfile.ZipFile, name: str, most: int = MOST_BYTES) -> bytes:
    """A file of a zip archive. Raises ValueError where it is larger, before it is unpacked."""
    size = archive.getinfo(name).file_size
    if size > most:
        raise ValueError(f"{name} has {size / 2**20:.0f} MiB unpacked, the limit is {most / 2**20:.0f}")
    with archive.open(name) as member:
        return member.read(size + 1)  # without a number all is unpacked first, whatever its size was said to be


def read_arrays(content: bytes) -> dict[str, NDArray[np.float32]]:
    """The arrays of an ``.npz`` file by name, which are finite numbers, at most ``MOST_BYTES`` together.

    Raises whatever its content makes go wrong.
    """
    arrays: dict[str, NDArray[np.float32]] = {}
    left = MOST_BYTES
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            data = read_member(archive, name, left)
            left -= len(data)
            arrays[name.removesuffix(".npy")] = _read_array(name, data)
    return arrays


def _read_array(name: str, data: bytes) -> NDArray[np.float32]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind != "f" or math.prod(shape) * dtype.itemsize != len(data) - file.tell():  # before room is made for it
        raise ValueError(f"{name} holds other numbers than it says")
    file.seek(0)
    values = np.asarray(np.lib.format.read_array(file, allow_pickle=False), np.float32)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values, or none")
    return values
