"""Modes of the user's own: ``models/dp_adapter/modes/NAME.json``, one mode each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dp_adapter.errors import SettingsError
from dp_adapter.modes.mode import Mode
from dp_adapter.modes.table import TABLE
from dp_adapter.settings.field_types import NAME, NAME_WORDS
from dp_adapter.settings.messages import closest
from dp_adapter.settings.nested_records import decode
from dp_adapter.text_files import read_text
from dp_adapter.user_files import list_folder

FOLDER = "dp_adapter/modes"
PREFIX = "custom:"
MAX_BYTES = 65_536


class Modes:
    """All modes: the known ones, and files in the models folders.

    Args:
        roots: model folders, searched in order.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._folders = tuple(root / FOLDER for root in roots)

    def own(self) -> tuple[str, ...]:
        """Names of the user's own modes in alphabetical order, as ``custom:NAME``; files are not opened."""
        return tuple(PREFIX + name for name in sorted({path.stem for path in self._files()}, key=str.lower))

    def names(self) -> tuple[str, ...]:
        return (*TABLE, *self.own())

    def of(self, name: str) -> Mode:
        """The mode of this name, as a request's ``mode`` gives it.

        Raises:
            SettingsError: there is no such file, or it is not a mode; says where in it.
        """
        if name in TABLE:
            return TABLE[name]
        plain = name.removeprefix(PREFIX)
        if not re.fullmatch(NAME, plain):  # so that no name leaves the folder
            raise SettingsError("mode", f"'{plain}' cannot name a mode", f"Use {NAME_WORDS}.")
        path = next((path for path in self._files() if path.stem == plain), None)
        if path is None:
            raise self._absent(plain)
        return read(path)

    def _files(self) -> Iterator[Path]:
        for folder in self._folders:
            yield from (path for path in list_folder(folder) if _is_mode(path, folder))

    def _absent(self, name: str) -> SettingsError:
        own = self.own()
        alike = closest(name, [one.removeprefix(PREFIX) for one in own])
        nearest = PREFIX + alike if alike else None
        where = f"Put {name}.json into {self._folders[0]}" if self._folders else "Give a models folder"
        hint = f"Did you mean '{nearest}'?" if nearest else f"{where}; docs/modes.md describes it."
        return SettingsError("mode", f"there is no mode '{name}'", hint, nearest)


def _is_mode(path: Path, folder: Path) -> bool:
    """A JSON file of a usable name that lies in the folder itself, links included."""
    named = path.suffix == ".json" and re.fullmatch(NAME, path.stem) is not None
    return named and path.is_file() and path.resolve().parent == folder.resolve()


def read(path: Path) -> Mode:
    """Reads a mode file. Raises SettingsError: too large, not JSON, or a key or value is refused."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _bad(path, f"it is larger than {MAX_BYTES // 1024} KB", "Shorten it.")
        data: Any = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"it cannot be read ({error})"
        raise _bad(path, reason, "Correct it there.") from None
    try:
        mode = decode(Mode, data)
    except SettingsError as error:
        raise _bad(path, error.problem.removeprefix(": "), error.hint, error.nearest) from None
    return mode


def _bad(path: Path, problem: str, hint: str, nearest: object = None) -> SettingsError:
    return SettingsError("mode", f"{path.name} is not a mode: {problem}", hint, nearest)
