"""Reads what ``torch.save`` wrote, on every torch from 2.1 on, without executing code from it."""

from __future__ import annotations

import os
import pickle
import pickletools
import tarfile
import zipfile
from pathlib import Path
from typing import IO

import torch
from torch import serialization

from dp_adapter.errors import WeightsError
from dp_adapter.naming import first_line

AGAIN = "Download it again and compare its size with the page it came from."
_CODE = ("unsupported global", "unsupported class")  # words of torch's refusals, 2.1 to 2.13
# How torch names the making of tensors of types that came later, 8-bit floats among them.
_NEWER = ("torch._utils._rebuild_", "torch.float8_", "torch.uint", "torch.serialization._get_layout")
_SAFE = "Nothing of it was run. Get this model as .safetensors from a source you trust."
_MOST_OPCODES = 500_000
"""Of a file's pickles: one makes at most some 220 bytes of objects, and a tensor takes about 30."""
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, names of the storages that follow


def unpickle(path: Path) -> object:
    """The content of a ``torch.save`` file, memory-mapped where its container allows.

    Raises:
        WeightsError: it is of another kind, damaged, or holds more than tensors; nothing of it was run.
    """
    try:
        return _load(path)
    except WeightsError:
        raise
    except Exception as error:  # damaged bytes make an unpickler raise anything
        if any(sign in str(error) for sign in _NEWER):
            problem = f"{path.name} holds numbers of a kind that torch {torch.__version__} cannot read from this format"
            raise WeightsError(problem, "Get this model as .safetensors, or update torch.") from error
        if any(sign in str(error).lower() for sign in _CODE):
            raise WeightsError(f"{path.name} contains code, not only weights", _SAFE) from error
        if isinstance(error, pickle.UnpicklingError):
            raise WeightsError(f"{path.name} is not a weight file, or is damaged", AGAIN) from error
        problem = f"{path.name} is truncated or damaged ({first_line(error, 120)})"
        raise WeightsError(problem, AGAIN) from error


def _load(path: Path) -> object:
    with path.open("rb") as opened:
        # The first bytes decide, as in torch: a file may be a tar archive in front and a zip file at its end.
        is_zip = opened.read(4) == b"PK\x03\x04"
        opened.seek(0)
        if is_zip:
            _refuse_archive(path, opened)
        elif tarfile.is_tarfile(path):
            # torch's tar loader executed code even with weights_only before 2.6 (CVE-2025-32434).
            raise WeightsError(
                f"{path.name} is a tar archive", "Load a .safetensors or a current torch.save file instead."
            )
        else:
            for _ in range(_LEGACY_PICKLES):
                _refuse_long_pickle(path, opened)
            opened.seek(0)
        # torch hands a path that ends in .safetensors to that library, whatever the file holds; only a path can be
        # mapped, and before torch 2.2 only one that is a string.
        by_path = is_zip and path.suffix != ".safetensors"
        # Not torch.load, where A1111 has put a check of its own: it cannot read open files, refuses what current
        # versions of torch write, and answers None.
        return serialization.load(
            str(path) if by_path else opened, map_location="cpu", weights_only=True, mmap=by_path or None
        )


def _refuse_archive(path: Path, opened: IO[bytes]) -> None:
    """Looks at what a zip archive holds before anything of it is unpacked.

    torch before 2.6 loads TorchScript, which is code, whatever ``weights_only`` says. ``torch.save`` stores without
    compression: what is compressed can be larger than any memory.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(one.filename.rpartition("/")[2] == "constants.pkl" for one in members):
            raise WeightsError(f"{path.name} contains code (TorchScript), not only weights", _SAFE)
        stored = all(one.compress_type == zipfile.ZIP_STORED and one.file_size == one.compress_size for one in members)
        if not stored or sum(one.file_size for one in members) > os.fstat(opened.fileno()).st_size:
            problem = (
                f"{path.name} is compressed inside, which torch.save never does, so its size in memory is not known"
            )
            raise WeightsError(
                problem, "Load it once with a torch that you trust and save it again, or as .safetensors."
            )
        for one in members:
            if one.filename.rpartition("/")[2] == "data.pkl":
                with archive.open(one) as content:
                    _refuse_long_pickle(path, content)


def _refuse_long_pickle(path: Path, content: IO[bytes]) -> None:
    """Reads on to the end of a pickle. Raises WeightsError where it would make more objects than weights need."""
    try:
        for number, _ in enumerate(pickletools.genops(content)):
            if number == _MOST_OPCODES:
                break
        else:
            return
    except Exception:  # damaged: the loader says it, in its words
        return
    raise WeightsError(f"{path.name} holds more objects than any model has weights", "It is not a model checkpoint.")
