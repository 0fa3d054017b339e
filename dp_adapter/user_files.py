"""Folders and JSON files of users as they may be: not there, not readable, endless, no files at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MOST = 2**20  # bytes


def list_folder(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where there is no folder, or one that may not be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def is_file(path: Path) -> bool:
    """Whether a file is there that may be looked at; pipes, devices and folders are none."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_json(path: Path, most: int = _MOST) -> Any:
    """A small JSON file in UTF-8.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it is larger than ``most`` bytes, too deep, or no JSON.
    """
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{path} is no file")
    with path.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most // 1024} KiB")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is too deep") from None
