"""Words for a picture: from a file beside it, from a table, or from what was measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from dp_adapter.errors import SettingsError
from dp_adapter.training.prepare.measured import sentence

Origin = Literal["table", "sidecar", "measured"]
FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")
CAPTION_COLUMNS = ("caption", "text", "prompt")
PERSON_COLUMN = "person"
_LONGEST = 1 << 20  # bytes of a sidecar; a longer one is no caption


@dataclass(frozen=True)
class Words:
    """A caption, where it is from, and what else was said of the picture."""

    caption: str
    origin: Origin
    told: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Captions:
    """Captions of the pictures of a folder.

    Args:
        folder: of the pictures; beside ``a/b.jpg`` a text file ``a/b.txt`` or an object in ``a/b.json`` is looked for.
        table: a CSV (with a header) or JSON-lines file, which comes before sidecars; its files are named by their path
            below the folder.
        file_column, caption_column: of the table; the first known name that is there when None.

    Raises:
        SettingsError: the table cannot be read or lacks a column.
    """

    def __init__(
        self, folder: Path, table: Path | None = None, file_column: str | None = None, caption_column: str | None = None
    ) -> None:
        self._folder = folder
        self._caption_columns = (caption_column,) if caption_column else CAPTION_COLUMNS
        self._rows = _rows(table, file_column, self._caption_columns) if table else {}
        self._table = table
        self.unreadable = 0

    def check(self, names: Iterable[str], people: bool) -> None:
        """Before the work: the table speaks of these pictures, and of every one's person where that is asked for.

        Raises:
            SettingsError: it does not.
        """
        if people and not self._table:
            raise SettingsError("people", "the table of people is missing", "Give it with --captions FILE.")
        missing = [name for name in names if name not in self._rows] if self._table else []
        if self._table and len(self._rows) and not any(name in self._rows for name in names):
            raise SettingsError(
                "captions", f"{self._table.name} names none of the pictures, as '{missing[0]}'",
                "Name files by their path below the folder, with forward slashes.",
            )  # fmt: skip
        unnamed = [name for name in names if people and not self.person(name)]
        if unnamed:
            raise SettingsError(
                "people", f"{len(unnamed)} pictures have no '{PERSON_COLUMN}' in the table, as '{unnamed[0]}'",
                "Fill the column, or use people=faces.",
            )  # fmt: skip

    def person(self, name: str) -> str:
        """The table's person of a picture; empty where it has none."""
        return str(self._rows.get(name, {}).get(PERSON_COLUMN) or "").strip()

    def of(self, name: str, fields: Mapping[str, Any]) -> Words:
        """Words for a picture.

        Args:
            fields: what was measured, for the case that nobody wrote a caption.
        """
        row = self._rows.get(name, {})
        text = _first(row, self._caption_columns)
        told = {key: value for key, value in row.items() if _plain(value) and key not in self._caption_columns}
        if text:
            return Words(text, "table", told)
        text, more = self._sidecar(name)
        told = {**told, **more}
        return Words(text, "sidecar", told) if text else Words(sentence(fields), "measured", told)

    def _sidecar(self, name: str) -> tuple[str, dict[str, Any]]:
        beside = self._folder / name
        try:
            if (path := beside.with_suffix(".txt")).is_file() and path.stat().st_size < _LONGEST:
                return " ".join(path.read_text(encoding="utf-8-sig").split()), {}
            if (path := beside.with_suffix(".json")).is_file() and path.stat().st_size < _LONGEST:
                row = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8-sig")))
                told = {key: v for key, v in row.items() if _plain(v) and key not in self._caption_columns}
                return _first(row, self._caption_columns), told
        except (OSError, ValueError, AttributeError):  # AttributeError: a list, not an object
            self.unreadable += 1
        return "", {}


def _rows(table: Path, file_column: str | None, caption_columns: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    try:
        rows = list(_read(table))
    except FileNotFoundError:
        raise SettingsError("captions", f"there is no file '{table}'", "Check the path.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise SettingsError(
            "captions", f"{table.name} cannot be read: {error}", "Give a CSV with a header, or JSON lines, in UTF-8."
        ) from error
    if not rows:
        raise SettingsError("captions", f"{table.name} has no rows", "Give a CSV with a header, or JSON lines.")
    columns = {name for row in rows for name in row}
    named = next((name for name in ((file_column,) if file_column else FILE_COLUMNS) if name in columns), None)
    if named is None:
        raise SettingsError(
            "captions",
            f"{table.name} has no column '{file_column or FILE_COLUMNS[0]}' that names the pictures; "
            f"it has: {', '.join(sorted(columns))}",
            "Say which one it is with --file-column.",
        )
    if not columns & {*caption_columns, PERSON_COLUMN}:
        raise SettingsError(
            "captions",
            f"{table.name} has no column '{' or '.join(caption_columns)}'; it has: {', '.join(sorted(columns))}",
            "Say which one it is with --caption-column.",
        )
    return {str(row[named]).replace("\\", "/").removeprefix("./"): row for row in rows if row.get(named)}


def _read(table: Path) -> Iterator[dict[str, Any]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        if table.suffix.lower() in {".jsonl", ".ndjson", ".json"}:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is not an object")
                    yield cast("dict[str, Any]", row)
        else:
            separator = "\t" if table.suffix.lower() == ".tsv" else ","
            for row in csv.DictReader(file, delimiter=separator):
                yield {str(key): value for key, value in row.items() if key}


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str:
    texts = (row.get(name) for name in names)
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()), "")


def _plain(value: object) -> bool:
    return isinstance(value, (str, int, float, bool))
