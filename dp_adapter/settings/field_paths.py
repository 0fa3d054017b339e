"""Dotted paths into the request, such as ``references[0].weight``: finding a field, and setting its JSON value."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, cast

from dp_adapter.errors import SettingsError
from dp_adapter.settings.fields import FieldInfo, Record
from dp_adapter.settings.messages import count, show
from dp_adapter.settings.nested_records import encode, fields_by_path, no_field_error


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
