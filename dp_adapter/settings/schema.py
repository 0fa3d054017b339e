"""The request's JSON schema, made from the fields."""

from __future__ import annotations

from typing import Any

from dp_adapter.settings.container_types import ListOf, Nullable
from dp_adapter.settings.field_types import Integer, Kind
from dp_adapter.settings.fields import FieldInfo, Record, fields_of
from dp_adapter.settings.nested_records import RecordOf
from dp_adapter.settings.request import VERSION, Settings


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of ``Settings.to_dict()``. What fields must agree on is only checked by Settings."""
    definitions: dict[str, Any] = {}
    _define(Settings, definitions)
    top = definitions.pop("Settings")
    version = {
        "const": VERSION,
        "default": VERSION,
        "title": "Version",
        "description": "Version of this form of the settings.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "DP-Adapter settings",
        **top,
        "properties": {"version": version, **top["properties"]},
        "$defs": definitions,
    }


def _define(record: type[Record], definitions: dict[str, Any]) -> None:
    if record.__name__ in definitions:
        return
    infos = fields_of(record)
    required = [info.name for info in infos if info.required]
    definitions[record.__name__] = {
        "type": "object",
        "properties": {info.name: _property(info) for info in infos},
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }
    for info in infos:
        _define_inner(info.kind, definitions)


def _define_inner(kind: Kind, definitions: dict[str, Any]) -> None:
    if isinstance(kind, Nullable | ListOf):
        _define_inner(kind.item, definitions)
    elif isinstance(kind, RecordOf):
        _define(kind.record, definitions)


def _property(info: FieldInfo) -> dict[str, Any]:
    kind = info.kind
    first = f" {kind.low} is {kind.format(kind.low)}." if isinstance(kind, Integer) and kind.noun else ""
    default = {} if info.required else {"default": info.kind.write(info.default)}
    return {**info.kind.schema(), "title": info.label, "description": info.help + first, **default}
