"""Dotted paths into the request: walking all fields, finding one, and setting one in the JSON form."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, cast

from dp_adapter.errors import SettingsError
from dp_adapter.settings.container_types import ListOf, Nullable
from dp_adapter.settings.field_types import Kind
from dp_adapter.settings.fields import FieldInfo, Record, RecordOf, encode, fields_of
from dp_adapter.settings.messages import closest, count, show

_FEW = 12  # fields that a sentence can name


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


def find(record: type[Record], path: str) -> FieldInfo:
    """The field at a path with or without item numbers.

    Raises:
        SettingsError: there is none; ``nearest`` is the path most like it.
    """
    fields = fields_by_path(record)
    general = re.sub(r"\[\d+\]", "[]", path)
    if general not in fields:
        raise no_field_error(record, general, path)
    return fields[general]


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


def to_json(value: object) -> Any:
    """A value that may be given in Python or in JSON form, with records in their JSON form."""
    if isinstance(value, list | tuple):
        items = cast("list[object]", value)
        return [encode(item) if isinstance(item, Record) else item for item in items]
    return encode(value) if isinstance(value, Record) else value


def set_at(record: type[Record], tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at ``path`` in a request's JSON form; a record that is null on the way becomes its defaults.

    Raises:
        SettingsError: no field has this path, or a list has no such item.
    """
    find(record, path)
    keys = [int(number) if number else name for number, name in re.findall(r"\[(\d+)\]|(\w+)", path)]
    node: Any = tree
    for key, following in pairwise(keys):
        if node[key] is None:
            node[key] = {}
        node = node[key]
        if isinstance(following, int) and following >= len(node):
            problem = f"there is no item {show(following)}, the request has {count(len(node), 'item')} there"
            raise SettingsError(path, problem, "Add it first.")
    node[keys[-1]] = value
