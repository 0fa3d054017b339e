"""The panel's values ↔ Settings. Every field has one widget, photos and regions one list each.

The script's args are ``ARGS`` in order. A widget that can be left to the program is a text box: empty is automatic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from dp_adapter.errors import SettingsError
from dp_adapter.settings import (
    CurveText,
    FieldInfo,
    Integer,
    Kind,
    ListOf,
    Nullable,
    Number,
    Settings,
    SiteFactors,
    field_at,
    walk_fields,
)
from dp_adapter.settings.messages import show, split_list, tidy

_LISTS = ("references", "regions")
WIDGET_PATHS: tuple[str, ...] = tuple(
    path for path, _ in walk_fields() if path not in ("enabled", *_LISTS) and "[]" not in path
)
"""Paths that have one widget each, in the order of the script's args."""

ARGS: tuple[str, ...] = ("request", "enabled", "photos", "regions", *WIDGET_PATHS)
"""Names of the script's args: ``request`` is the API's, empty from the panel; then the panel's own."""

MISFIT = " ⚠ "
"""Stands in the model list between a file's name and why it does not fit."""

AUTOMATIC_WORDS = frozenset({"", "auto", "automatic", "null", "none"})


def settings_of(args: Sequence[object]) -> Settings:
    """The request that the script's args make.

    Args:
        args: in the order of ``ARGS``; what is missing or None takes its default. The first one, an object or its
            JSON text, is the whole request when it is not empty.

    Raises:
        SettingsError: a value is refused. A disabled panel refuses nothing: half-filled fields stop no job. What no
            panel can hold came over the API, and is refused there too.
    """
    _require_request(args)
    given = dict(zip(ARGS, args, strict=False))
    request = given.pop("request", None)
    if isinstance(request, Mapping):
        return Settings.from_dict(cast("Mapping[str, Any]", request))
    if isinstance(request, str) and request.strip():
        return Settings.from_json(request)
    if not given.get("enabled"):
        try:
            return Settings.from_dict({**_tree(given), "enabled": False})
        except SettingsError:
            return Settings(enabled=False)
    return Settings.from_dict({**_tree(given), "enabled": True})


def _require_request(args: Sequence[object]) -> None:
    """Raises SettingsError where the args are neither a panel's nor one request.

    The hosts lay the ``args`` of an API request over the panel's own, so one of a wrong kind would be a panel that is
    off, and a plain picture.
    """
    if all(one is None for one in args):
        return
    request, enabled, *others = [*args, None, None]
    if not isinstance(request, Mapping | str):
        raise _no_request(0, request)
    if enabled is not None and not isinstance(enabled, bool):
        raise _no_request(1, enabled)
    for number, one in enumerate(others, 2):
        if isinstance(one, Mapping):
            raise _no_request(number, cast("object", one))


def _no_request(number: int, value: object) -> SettingsError:
    problem = f"{show(value)} is not a request" if number == 0 else f"{show(value)} is one too many"
    example = '"args": [{"references": [{"image": "…"}], "weight": 0.8}]'
    return SettingsError(
        f"args[{number}]", problem, f'Give one object with the settings, {example}; "enabled" is a field in it.'
    )


def values_of(settings: Settings) -> dict[str, object]:
    """The panel's value by name, all of ``ARGS`` but the first; ``settings_of`` reads them back exactly."""
    tree = settings.to_dict()
    values: dict[str, object] = {"enabled": settings.enabled}
    for arg, name in zip(("photos", "regions"), _LISTS, strict=True):
        values[arg] = json.dumps(tree[name], ensure_ascii=False) if tree[name] else ""
    return values | {path: widget_value(field_at(path).kind, _at(tree, path)) for path in WIDGET_PATHS}


def args_of(settings: Settings) -> list[object]:
    """The script's args that make this request."""
    return ["", *values_of(settings).values()]


def default_of(path: str) -> object:
    """What the widget of a field shows in a fresh panel."""
    info = field_at(path)
    return widget_value(info.kind, info.kind.write(info.default))


def is_text(kind: Kind) -> bool:
    """Whether the kind's widget is a text box although its value is not a text."""
    numbers = isinstance(kind, ListOf) and isinstance(kind.item, Number)
    return numbers or isinstance(kind, Nullable | CurveText | SiteFactors)


def widget_value(kind: Kind, data: Any) -> object:
    """A field's JSON form → its widget's value."""
    if isinstance(kind, Nullable):
        return "" if data is None else tidy(data)
    if isinstance(kind, Integer) and kind.noun:
        return data + 1
    if isinstance(kind, SiteFactors):
        return ", ".join(f"{site}: {tidy(factor)}" for site, factor in data.items())
    if isinstance(kind, ListOf) and isinstance(kind.item, Number):
        return ", ".join(map(tidy, data))
    return data


def field_value(info: FieldInfo, value: object) -> Any:
    """A widget's value → the field's JSON form. What cannot be read is returned as it is, for the field to refuse."""
    kind = info.kind
    if isinstance(kind, Nullable):
        return _number_or_automatic(kind, value)
    if value is None:
        return kind.write(info.default)
    if isinstance(kind, Integer) and kind.noun and isinstance(value, int | float):
        return max(value - 1, kind.low)  # a slider's limits that the host kept from an earlier version begin at 0
    if not (isinstance(value, str) and is_text(kind)):
        return value
    if isinstance(kind, SiteFactors):
        return _site_factors(value)
    return kind.parse(value)


def _number_or_automatic(kind: Nullable, value: object) -> Any:
    if value is None or (isinstance(value, str) and value.strip().lower() in AUTOMATIC_WORDS):
        return None
    if isinstance(value, str) and isinstance(kind.item, Number | Integer):
        # Half of Europe writes 0,5.
        return kind.item.parse(value.strip().replace(",", ".", 1))
    return value


def _site_factors(text: str) -> Any:
    """``3: 0.5, 12: 0`` or a JSON object."""
    if not text.strip():
        return {}
    try:
        if not text.lstrip().startswith("{"):
            pairs = (re.sub(r"^(\w+)\s*:", r'"\1":', pair) for pair in split_list(text) if pair)
            text = "{" + ",".join(pairs) + "}"
        return json.loads(text)
    except (ValueError, RecursionError, SettingsError):
        return text


def _tree(given: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "references": _read_items(given.get("photos"), "references"),
        "regions": _read_items(given.get("regions"), "regions"),
    }
    for path in WIDGET_PATHS:
        *above, name = path.split(".")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[name] = field_value(field_at(path), given.get(path))
    if isinstance(tree["model"], str):
        tree["model"] = tree["model"].partition(MISFIT)[0]
    return tree


def _read_items(given: object, field: str) -> list[Any]:
    """The list in a hidden text box, without the names that are there for display only."""
    if given is None or given == "":
        return []
    try:
        items = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise SettingsError(field, f"{show(given)} is not a JSON list", "Drop the photos again.") from error
    if not isinstance(items, list):
        raise SettingsError(field, f"{show(items)} is not a list", "Use a list of objects.")
    return [
        {key: value for key, value in cast("dict[str, Any]", item).items() if key != "name"}
        if isinstance(item, dict)
        else item
        for item in cast("list[Any]", items)
    ]


def _at(tree: dict[str, Any], path: str) -> Any:
    node: Any = tree
    for name in path.split("."):
        node = node[name]
    return node
