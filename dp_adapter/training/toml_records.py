"""Frozen dataclasses from the tables of a TOML file: unknown keys and wrong types are refused in words."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from dp_adapter.errors import SettingsError

T = TypeVar("T")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def decode(record: type[T], table: object, path: str = "", defaults: T | None = None) -> T:
    """A record from a TOML table.

    Args:
        path: dotted name of the table, for refusals.
        defaults: values of fields that the table does not name, in place of the record's own.

    Raises:
        SettingsError: a key is unknown or missing, or a value has another type.
    """
    if not isinstance(table, Mapping):
        raise SettingsError(path or "config", f"{table!r} is not a table", f"Write it as [{path}].")
    values = cast(Mapping[str, object], table)
    kinds = get_type_hints(record)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, record))}
    for key in values:
        if key not in fields:
            nearest = difflib.get_close_matches(key, fields, 1, 0)[0]
            raise SettingsError(_join_path(path, key), "there is no such key", f"Did you mean '{nearest}'?", nearest)
    found: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            found[name] = _decode_value(kinds[name], values[name], _join_path(path, name))
        elif defaults is not None:
            found[name] = getattr(defaults, name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(_join_path(path, name), "is missing", "Give it a value.")
    return record(**found)


def _join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _decode_value(kind: Any, value: object, path: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):  # only "X | None"; TOML has no null, so a value is an X
        return _decode_value(next(one for one in get_args(kind) if one is not type(None)), value, path)
    if origin is Literal:
        if value not in get_args(kind):
            known = [str(one) for one in get_args(kind)]
            nearest = difflib.get_close_matches(str(value), known, 1, 0)[0]
            raise SettingsError(path, f"there is no {value!r}, known are {', '.join(known)}", nearest=nearest)
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise SettingsError(path, f"{value!r} is not a list", "Write it in brackets.")
        inner = get_args(kind)[0]
        return tuple(_decode_value(inner, one, f"{path}[{i}]") for i, one in enumerate(cast(Sequence[object], value)))
    if dataclasses.is_dataclass(kind):
        return decode(cast("type[object]", kind), value, path)
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not right:
        raise SettingsError(path, f"{value!r} is not {_WORDS[kind]}", "See docs/training.md.")
    return value
