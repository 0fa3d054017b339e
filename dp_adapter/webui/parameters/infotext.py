"""A request as text in a picture's parameters, and back.

Every changed field is one parameter, under the infotext name of its field; items of lists are numbered from 1
(``DP-Adapter photo weight 2``). Pictures are never written: ``photo:HASH`` and ``identity:NAME`` stand for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dp_adapter import naming
from dp_adapter.errors import SettingsError
from dp_adapter.settings import (
    VERSION,
    FieldInfo,
    ListOf,
    RecordOf,
    Settings,
    field_at,
    infotext_name,
    walk_fields,
)
from dp_adapter.settings.messages import within
from dp_adapter.settings.result_sections import RESULT
from dp_adapter.webui.parameters.infotext_photos import walk_values
from dp_adapter.webui.parameters.infotext_values import decode_value, encode_value

KEY = "DP-Adapter"
_LEFT = "Left at its default."
_SHOWN = 20  # notes, and keys in one
_DIGITS = 9  # of a version that can be one
_ALWAYS = ("weight",)  # what every reader of a picture's parameters looks for


def write_parameters(settings: Settings, names: Mapping[str, str]) -> dict[str, str]:
    """Infotext parameters of a request, for ``p.extra_generation_params``; none while it is disabled.

    Args:
        names: file names by hash, for readers of the text.

    Raises:
        ValueError: a picture is neither ``photo:HASH`` nor ``identity:NAME``; see ``infotext_photos.keep_pictures``.
    """
    if not settings.enabled:
        return {}
    written = {
        infotext_name(path): encode_value(info.kind, value, names, infotext_name(path))
        for path, info, value, present in walk_values(settings)
        if value != info.default or present or path in _ALWAYS
    }
    return {KEY: str(VERSION), **written}


def is_request(key: str) -> bool:
    """Whether a parameter is part of a request, not something measured."""
    return key == KEY or (key.startswith(f"{KEY} ") and not key.startswith(RESULT))


@dataclass(frozen=True)
class PastedRequest:
    """What a picture's parameters say.

    Attributes:
        settings: None where they contradict each other beyond repair; ``notes`` say how.
        names: file names by hash.
        notes: in words, what could not be read.
    """

    settings: Settings | None
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()


def read_parameters(params: Mapping[str, str]) -> PastedRequest | None:
    """What a picture's parameters say, leaving out what cannot be read; None where DP-Adapter had no part in it."""
    if KEY not in params:
        return None
    names: dict[str, str] = {}
    leaves: dict[str, Any] = {}
    unknown: list[str] = []
    for key, text in params.items():
        if key == KEY or not is_request(key):
            continue
        path = _path(key)
        if path is None:
            unknown.append(key)
        else:
            leaves[path] = decode_value(field_at(path).kind, str(text), names)
    notes = [_unknown(unknown, str(params[KEY]))] if unknown else []
    settings = _without_refused(leaves, notes)
    more = [f"{len(notes) - _SHOWN} more are left out here."] if len(notes) > _SHOWN else []
    return PastedRequest(settings, names, (*notes[:_SHOWN], *more))


def _path(key: str) -> str | None:
    """The dotted path of an infotext key; numbers at its end are those of the list's items."""
    plain = _paths().get(key)
    if plain is not None:
        return plain
    match = re.fullmatch(r"(.+) ([1-9]\d?)", key, re.ASCII)
    path = match and _paths().get(f"{match[1]} #")
    return path.replace("[]", f"[{int(match[2]) - 1}]") if match and path else None


@cache
def _paths() -> dict[str, str]:
    """Paths by infotext key, with `` #`` in place of an item's number."""
    return {info.infotext + (" #" if "[]" in path else ""): path for path, info in _leaves()}


def _leaves() -> Iterator[tuple[str, FieldInfo]]:
    """Fields with a parameter of their own: all that hold a value, but for the lists of records."""
    for path, info in walk_fields():
        if not (isinstance(info.kind, ListOf) and isinstance(info.kind.item, RecordOf)):
            yield path, info


def _unknown(keys: list[str], version: str) -> str:
    newer = f" The picture was made with version {version} of the settings; here it is {VERSION}."
    advice = newer if version.isdecimal() and len(version) < _DIGITS and int(version) > VERSION else ""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return naming.word(f"Not known here and left out: {', '.join(keys[:_SHOWN])}{more}.{advice}")


def _without_refused(leaves: dict[str, Any], notes: list[str]) -> Settings | None:
    """The request of these fields, without those that are refused; each refusal becomes a note."""
    leaves = _without_refused_alone(_renumber(leaves), notes)
    while True:
        leaves = _renumber(leaves)
        try:
            return Settings.from_dict(_tree(leaves))
        except SettingsError as error:
            refused = _leaves_behind(error.field, leaves)
            notes.append(f"{error} {_LEFT if refused else 'Nothing was taken over.'}")
            if not refused:
                return None
            leaves = {path: value for path, value in leaves.items() if path not in refused}


def _without_refused_alone(leaves: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The fields that are valid by themselves, found in one go: there may be thousands."""
    valid: dict[str, Any] = {}
    for path, value in leaves.items():
        info, above = field_at(path), path.rpartition(".")[0]
        try:
            with within(above) if above else nullcontext():
                info.check(info.read(value))
        except SettingsError as error:
            notes.append(f"{error} {_LEFT}")
        else:
            valid[path] = value
    return valid


def _leaves_behind(field_name: str, leaves: Mapping[str, Any]) -> set[str]:
    """The leaves that a refused field stands for: itself, what lies under it, else the list item that it is in."""
    own = {path for path in leaves if path == field_name or field_name.startswith((f"{path}[", f"{path}."))}
    under = {path for path in leaves if path.startswith((f"{field_name}[", f"{field_name}."))}
    item = re.match(r"\w+\[\d+\]", field_name)
    return own or under or {path for path in leaves if item and path.startswith(f"{item[0]}.")}


def _renumber(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Items of lists without gaps, in order."""
    found = {match[0] for path in leaves if (match := re.match(r"\w+\[\d+\]", path))}
    ordered: dict[str, list[str]] = {}
    for item in sorted(found, key=lambda item: int(item.split("[")[1][:-1])):
        ordered.setdefault(item.split("[", maxsplit=1)[0], []).append(item)
    new = {item: f"{name}[{index}]" for name, items in ordered.items() for index, item in enumerate(items)}
    return {re.sub(r"^\w+\[\d+\]", lambda match: new[match[0]], path): value for path, value in leaves.items()}


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested JSON of dotted paths whose items are numbered without gaps."""
    tree: dict[str, Any] = {}
    for path, value in sorted(leaves.items(), key=lambda leaf: [int(n) for n in re.findall(r"\[(\d+)\]", leaf[0])]):
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            name, _, rest = parent.partition("[")
            if rest:
                items = node.setdefault(name, [])
                if int(rest[:-1]) == len(items):
                    items.append({})
                node = items[int(rest[:-1])]
            else:
                node = node.setdefault(name, {})
        node[last] = value
    return tree
