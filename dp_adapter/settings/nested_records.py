"""Records within records: their JSON form, a walk through all their fields, and what an unknown key may mean."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

from dp_adapter.errors import SettingsError
from dp_adapter.settings.container_types import ListOf, Nullable
from dp_adapter.settings.field_types import Kind
from dp_adapter.settings.fields import FieldInfo, Record, fields_of
from dp_adapter.settings.messages import closest, refusal, show

R = TypeVar("R", bound=Record)
_FEW = 12  # fields that a sentence can name


@dataclass(frozen=True)
class RecordOf(Kind):
    """A nested record. ``prefix`` goes before the labels and infotext names of its fields where it is used twice."""

    record: type[Record]
    prefix: str = ""

    def check(self, value: object) -> Record:
        if isinstance(value, self.record):
            return value
        raise refusal(f"{show(value)} is not a {self.record.__name__}", f"Use {self.describe()}.")

    def read(self, data: object) -> Record:
        return decode(self.record, data)

    def write(self, value: Any) -> dict[str, Any]:
        return encode(value)

    def brief(self, value: Any) -> dict[str, Any]:
        return encode(value, changed_only=True)

    def schema(self) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{self.record.__name__}"}

    def describe(self) -> str:
        return f"an object with {', '.join(info.name for info in fields_of(self.record))}"


def encode(record: Record, *, changed_only: bool = False) -> dict[str, Any]:
    """The record as plain JSON types; ``changed_only`` leaves out fields at their defaults."""
    values = ((info, getattr(record, info.name)) for info in fields_of(type(record)))
    return {
        info.name: info.kind.brief(value) if changed_only else info.kind.write(value)
        for info, value in values
        if not (changed_only and value == info.default)
    }


def decode(record: type[R], data: object) -> R:
    """Reads a record from plain JSON types; fields that are not given take their defaults.

    Raises:
        SettingsError: not an object, an unknown key, or a value that its field refuses.
    """
    if not isinstance(data, Mapping):
        raise refusal(f"{show(data)} is not an object with fields", "Use an object, as in {…}.")
    infos = {info.name: info for info in fields_of(record)}
    values: dict[str, Any] = {}
    for key, value in cast("Mapping[object, object]", data).items():
        if not isinstance(key, str) or key not in infos:
            raise unknown_key_error(key, record)
        values[key] = infos[key].read(value)
    return record(**values)


def walk(record: type[Record], path: str = "", prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field under ``record`` in declared order, records before their fields, with its dotted path.

    Items of lists have ``[]`` in the path: ``references[].weight``. Labels and infotext names carry the prefixes.
    """
    for info in fields_of(record):
        here = f"{path}.{info.name}" if path else info.name
        yield here, _with_prefix(info, prefix)
        inner = _nested_record(info.kind)
        if inner is not None:
            brackets = "[]" if isinstance(info.kind, ListOf) else ""
            yield from walk(inner.record, here + brackets, f"{prefix} {inner.prefix}".strip())


def _with_prefix(info: FieldInfo, prefix: str) -> FieldInfo:
    if not prefix:
        return info
    label = f"{prefix} {info.label[0].lower()}{info.label[1:]}"
    name = info.infotext.removeprefix("DP-Adapter ")
    return dataclasses.replace(info, label=label, infotext=f"DP-Adapter {prefix.lower()} {name}")


def _nested_record(kind: Kind) -> RecordOf | None:
    if isinstance(kind, Nullable | ListOf):
        kind = kind.item
    return kind if isinstance(kind, RecordOf) else None


@cache
def fields_by_path(record: type[Record]) -> dict[str, FieldInfo]:
    """All fields under ``record`` by path."""
    return dict(walk(record))


def is_leaf(info: FieldInfo) -> bool:
    """Whether the field has a value of its own: all but records. A list of records has one, as a whole."""
    return isinstance(info.kind, ListOf) or _nested_record(info.kind) is None


def unknown_key_error(key: object, record: type[Record]) -> SettingsError:
    """The error for a key that no field of a record has."""
    if not isinstance(key, str):
        return SettingsError(show(key), "field names are text", "Put it in quotes.")
    return no_field_error(record, key, key if len(key) <= 60 else show(key))


def no_field_error(record: type[Record], name: str, shown: str) -> SettingsError:
    """The error for a name, or a path, that no field under ``record`` has; ``shown`` is how it was given."""
    nearest = _guess_field(record, name)
    hint = f"Did you mean '{nearest}'?"
    if nearest is None:
        names = [info.name for info in fields_of(record)]
        hint = f"There are {', '.join(names)}." if len(names) <= _FEW else "docs/settings.md lists all fields."
    return SettingsError(shown, "there is no such field", hint, nearest)


def _guess_field(record: type[Record], name: str) -> str | None:
    """The field that a wrong name may mean: by what others call it, by where it really is, or by its letters.

    None where nothing speaks for any. Of a path, the last name is the wrong one if what it is under is there.
    """
    fields = fields_by_path(record)
    if name in fields:  # a path where a name belongs
        return name.split(".", maxsplit=1)[0]
    above, _, last = name.rpartition(".")
    inside = f"{above}." if above.removesuffix("[]") in fields else ""
    if above and not inside:
        return closest(name, fields)
    under = sorted((path for path in fields if path.startswith(inside)), key=lambda path: path.count("."))
    word = re.sub(r"\W+", "_", last.strip().lower())
    called = [path for path in under if word in fields[path].also]
    elsewhere = [path for path in under if path.rpartition(".")[2] == word]
    if called or elsewhere:
        return (called or elsewhere)[0]
    own = {path.removeprefix(inside): path for path in under}
    return own.get(closest(word, [one for one in own if "." not in one]) or "")
