"""Frozen dataclasses from the tables of a TOML file: unknown keys, wrong types and values out of range are refused.

A field's type says what it may be: ``Annotated`` with a kind of the settings, a few words (``Literal``), true or false,
a tuple of such, or another dataclass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from dp_adapter.errors import SettingsError
from dp_adapter.settings.field_types import Choice, Flag, Kind
from dp_adapter.settings.messages import closest, refusal, show, within

T = TypeVar("T")

_LONGEST = 60  # characters of a key that is shown as it is


def decode(record: type[T], table: object) -> T:
    """A record from a TOML table.

    Raises:
        SettingsError: a key is unknown or missing, or its value is not what the field may be.
    """
    if not isinstance(table, Mapping):
        raise refusal(f"{show(table)} is not a table", "Write it as a table: its name in brackets, then its keys.")
    values = cast(Mapping[str, object], table)
    kinds = _types_of(record)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, record))}
    for key in values:
        if key not in fields:
            nearest = closest(key, fields)
            hint = f"Did you mean '{nearest}'?" if nearest else f"There are {', '.join(fields)}."
            raise SettingsError(key if 0 < len(key) <= _LONGEST else show(key), "there is no such key", hint, nearest)
    found: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            with within(name):
                found[name] = _decode_value(kinds[name], values[name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(name, "is missing", "Give it a value.")
    return record(**found)


def kind_of(declared: Any) -> Kind | None:
    """What a value of this type may be; None of lists and tables."""
    origin = get_origin(declared)
    if origin is Annotated:
        return next(kind for kind in get_args(declared) if isinstance(kind, Kind))
    if origin is Literal:
        return Choice(get_args(declared))
    return Flag() if declared is bool else None


@cache
def _types_of(record: type) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def _decode_value(declared: Any, value: object) -> Any:
    if kind := kind_of(declared):
        return kind.check(value)
    if get_origin(declared) is Mapping and isinstance(value, Mapping):
        return cast(Mapping[str, object], value)
    if get_origin(declared) is not tuple:
        return decode(cast("type[object]", declared), value)
    if not isinstance(value, list):
        raise refusal(f"{show(value)} is not a list", "Write it in brackets.")
    items: list[Any] = []
    for index, one in enumerate(cast("list[object]", value)):
        with within(f"[{index}]"):
            items.append(_decode_value(get_args(declared)[0], one))
    return tuple(items)
