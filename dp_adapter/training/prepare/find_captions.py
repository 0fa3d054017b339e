"""Words for a picture: from a file beside it, from a table, or from what was measured."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from dp_adapter.errors import SettingsError
from dp_adapter.text_files import read_text
from dp_adapter.training.prepare.measured_captions import write_sentence

Origin = Literal["table", "sidecar", "measured"]
FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")
CAPTION_COLUMNS = ("caption", "text", "prompt")
PERSON_COLUMN = "person"
SIDECARS = (".txt", ".caption", ".cap", ".json")
"""In the order in which they count; kohya's scripts write .caption, most others .txt."""
_LONGEST = 1 << 20  # bytes of a sidecar; a longer one is no caption


@dataclass(frozen=True)
class FoundCaption:
    """A caption, where it is from, and the other columns or fields that stood beside it."""

    caption: str
    origin: Origin
    other_fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Captions:
    """Captions of the pictures of a folder.

    Args:
        folder: of the pictures; beside ``a/b.jpg`` a text file (``a/b.txt``, ``.caption``, ``.cap``, also
            ``a/b.jpg.txt``) or an object in ``a/b.json`` is looked for.
        table: a CSV (with a header), JSON lines, or JSON: a list of objects, or an object of them by file as kohya's
            scripts write it; it comes before sidecars. Its files are named by their path below the folder.
        file_column, caption_column: of the table; the first known name that is there when None.

    Raises:
        SettingsError: the table cannot be read or lacks a column.
    """

    def __init__(
        self, folder: Path, table: Path | None = None, file_column: str | None = None, caption_column: str | None = None
    ) -> None:
        self._folder = folder
        self._caption_columns = (caption_column,) if caption_column else CAPTION_COLUMNS
        self._rows = _read_table(table, file_column, self._caption_columns) if table else {}
        self._table = table
        self.problems: dict[Path, str] = {}
        """Sidecars that cannot be read, and why."""

    @property
    def unreadable(self) -> int:
        """How many sidecars cannot be read."""
        return len(self.problems)

    def check(self, names: Iterable[str], people: bool) -> None:
        """Checks before the work that the table fits the pictures.

        Args:
            names: of the pictures; people: whether the table must name a person for each of them.

        Raises:
            SettingsError: it names none of the pictures, or not everyone's person.
        """
        if people and not self._table:
            raise SettingsError("people", "the table of people is missing", "Give it with --captions FILE.")
        missing = [name for name in names if not self._find_row(name)] if self._table else []
        if self._table and len(self._rows) and not any(self._find_row(name) for name in names):
            raise SettingsError(
                "captions", f"{self._table.name} names none of the pictures, as '{missing[0]}'",
                "Name files by their path below the folder, with forward slashes.",
            )  # fmt: skip
        unnamed = [name for name in names if people and not self.find_person(name)]
        if unnamed:
            raise SettingsError(
                "people", f"{len(unnamed)} pictures have no '{PERSON_COLUMN}' in the table, as '{unnamed[0]}'",
                "Fill the column, or use people=faces.",
            )  # fmt: skip

    def find_person(self, name: str) -> str:
        """The person that the table names for a picture; empty where it names none."""
        return str(self._find_row(name).get(PERSON_COLUMN) or "").strip()

    def _find_row(self, name: str) -> Mapping[str, Any]:
        """A picture's row; tables may name it by its whole path, or without its suffix, as kohya's scripts do."""
        if not self._rows:
            return {}
        for path in (Path(name), self._folder / name, (self._folder / name).resolve()):
            for key in (path.as_posix(), path.with_suffix("").as_posix()):
                if key in self._rows:
                    return self._rows[key]
        return {}

    def find(self, name: str, fields: Mapping[str, Any]) -> FoundCaption:
        """The caption of a picture: the table's, else that of a file beside it, else a sentence of ``fields``.

        Args:
            fields: what was measured on the picture, see ``measure_fields``.
        """
        row = self._find_row(name)
        text = _first_text(row, self._caption_columns)
        others = self._other_fields(row)
        if text:
            return FoundCaption(text, "table", others)
        text, more = self._read_sidecars(name)
        others |= more
        if text:
            return FoundCaption(text, "sidecar", others)
        return FoundCaption(write_sentence(fields), "measured", others)

    def _other_fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if _is_plain(value) and key not in self._caption_columns}

    def _read_sidecars(self, name: str) -> tuple[str, dict[str, Any]]:
        beside = self._folder / name
        for suffix in SIDECARS:
            for path in (beside.with_suffix(suffix), beside.with_suffix(suffix.upper()), Path(f"{beside}{suffix}")):
                if path.is_file():
                    text, others = self._read_sidecar(path)
                    if text or others:
                        return text, others
        return "", {}

    def _read_sidecar(self, path: Path) -> tuple[str, dict[str, Any]]:
        try:
            if path.stat().st_size > _LONGEST:
                raise ValueError(f"it is larger than {_LONGEST // 2**20} MiB")
            text = read_text(path)
            if path.suffix.lower() != ".json":
                return " ".join(text.split()), {}
            row = json.loads(text)
            if not isinstance(row, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError, RecursionError) as error:
            self.problems[path] = str(error)
            return "", {}
        row = cast("dict[str, Any]", row)
        return _first_text(row, self._caption_columns), self._other_fields(row)


def _read_table(table: Path, file_column: str | None, caption_columns: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    try:
        rows = list(_read_rows(table))
    except FileNotFoundError:
        raise SettingsError("captions", f"there is no file '{table}'", "Check the path.") from None
    except (OSError, ValueError, csv.Error, RecursionError) as error:
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


def _read_rows(table: Path) -> Iterator[dict[str, Any]]:
    text = read_text(table)
    if table.suffix.lower() in {".jsonl", ".ndjson", ".json"}:
        yield from _parse_objects(text)
    else:
        header = text.partition("\n")[0]
        # spreadsheets write semicolons where commas are decimal
        separator = "\t" if table.suffix.lower() == ".tsv" else ";" if ";" in header and "," not in header else ","
        for row in csv.DictReader(io.StringIO(text), delimiter=separator):
            yield {str(key): value for key, value in row.items() if key}


def _parse_objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON lines, or one JSON value: a list of objects, or objects by the name of their picture's file."""
    try:
        whole = json.loads(text)
    except ValueError:  # more than one line
        whole = None
    if isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in cast("Any", whole).values()):
        rows = cast("dict[str, dict[str, Any]]", whole)
        yield from ({FILE_COLUMNS[0]: name, **row} for name, row in rows.items())
        return
    if isinstance(whole, list):
        numbered = enumerate(cast("list[object]", whole), 1)
        named = "object"
    else:
        numbered = ((n, json.loads(line)) for n, line in enumerate(text.splitlines(), 1) if line.strip())
        named = "line"
    for number, row in numbered:
        if not isinstance(row, dict):
            raise ValueError(f"{named} {number} is not an object")
        yield cast("dict[str, Any]", row)


def _first_text(row: Mapping[str, Any], names: Iterable[str]) -> str:
    texts = (row.get(name) for name in names)
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()), "")


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float, bool))
