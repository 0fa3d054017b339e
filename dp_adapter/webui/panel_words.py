"""Errors and notes as the panel shows them: field names become labels, photos and persons are counted from 1."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from dp_adapter.errors import DPAdapterError, SettingsError
from dp_adapter.settings import field_at

_ITEM = re.compile(r"\b(references|regions)\[(\d+)\]")
_NOUNS = {"references": "photo", "regions": "region"}
_log = logging.getLogger("dp_adapter")
Tone = Literal["note", "warning", "error"]


def words(error: DPAdapterError) -> str:
    """An error in the panel's words."""
    if isinstance(error, SettingsError) and error.field.endswith(".identity") and isinstance(error.nearest, int):
        where = _item(error.field)
        return f"{where}: persons are counted without gaps and need a photo each. Use person {error.nearest + 1}."
    text = str(error)
    if isinstance(error, SettingsError):
        text = text.replace(f"{error.field}:", f"{_named(error.field)}:", 1)
    text = _ITEM.sub(lambda found: f"{_NOUNS[found[1]].capitalize()} {int(found[2]) + 1}", text)
    text = re.sub(r"^(\w+ \d+)\.[\w.]+:", r"\1:", text)
    return text[:1].upper() + text[1:]


def unexpected(error: Exception) -> str:
    """A sentence for an error that nobody foresaw; the details go to the log."""
    _log.error("The panel met an unexpected error", exc_info=error)
    return f"Something went wrong inside DP-Adapter ({type(error).__name__}). The console has the details."


def counted(note: str) -> str:
    """A session's note with persons and photos counted from 1."""
    return re.sub(r"\b([Pp]erson|[Pp]hoto|[Ff]ace) (\d+)\b", lambda found: f"{found[1]} {int(found[2]) + 1}", note)


def status(lines: str | Iterable[str], tone: Tone = "note") -> str:
    """HTML of the status line; nothing for no lines."""
    listed = [lines] if isinstance(lines, str) else list(lines)
    shown: Sequence[str] = [f"<div>{html.escape(line)}</div>" for line in listed if line]
    return f'<div class="dp-adapter-words dp-adapter-{tone}">{"".join(shown)}</div>' if shown else ""


def _named(field: str) -> str:
    try:
        label = field_at(field).label
    except SettingsError:
        return _ITEM.sub(lambda found: f"{_NOUNS[found[1]]} {int(found[2]) + 1}", field)
    item = _ITEM.match(field)
    if item is None:
        return label
    # "Region 1, mask", not "Region 1, region mask"
    short = label.removeprefix(f"{_NOUNS[item[1]].capitalize()} ").lower()
    return f"{_item(field)}, {short}"


def _item(field: str) -> str:
    found = _ITEM.match(field)
    return f"{_NOUNS[found[1]].capitalize()} {int(found[2]) + 1}" if found else field
