"""Errors and notes as the panel shows them: names of fields become labels, items of lists are counted from 1."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from dp_adapter import naming
from dp_adapter.errors import DPAdapterError, SettingsError
from dp_adapter.settings import field_at

_ITEM = re.compile(r"\b(references|regions)\[(\d+)\]")
_NAMES = {"references": naming.photo, "regions": naming.region}
_log = logging.getLogger("dp_adapter")
Tone = Literal["note", "warning", "error"]


def explain(error: DPAdapterError) -> str:
    """An error in the panel's words."""
    if isinstance(error, SettingsError) and error.field.endswith(".identity") and isinstance(error.nearest, int):
        where = _item_label(error.field)
        return f"{where}: persons are counted without gaps and need a photo each. Use {naming.person(error.nearest)}."
    text = str(error)
    if isinstance(error, SettingsError):
        text = text.replace(f"{error.field}:", f"{_label_of(error.field)}:", 1)
    text = _ITEM.sub(lambda found: naming.capitalise(_item_name(found)), text)
    text = re.sub(r"^(\w+ \d+)\.[\w.]+:", r"\1:", text)
    return text[:1].upper() + text[1:]


def log_unexpected(error: Exception) -> str:
    """A sentence for an error that nobody foresaw; the details go to the log."""
    _log.error("The panel met an unexpected error", exc_info=error)
    return f"Something went wrong inside DP-Adapter ({type(error).__name__}). The console has the details."


def status_html(lines: str | Iterable[str], tone: Tone = "note") -> str:
    """HTML of the status line; nothing for no lines."""
    listed = [lines] if isinstance(lines, str) else list(lines)
    shown: Sequence[str] = [f"<div>{html.escape(line)}</div>" for line in listed if line]
    return f'<div class="dp-adapter-words dp-adapter-{tone}">{"".join(shown)}</div>' if shown else ""


def _label_of(field: str) -> str:
    try:
        label = field_at(field).label
    except SettingsError:
        return _ITEM.sub(_item_name, field)
    item = _ITEM.match(field)
    if item is None:
        return label
    # "Region 1, mask", not "Region 1, region mask"
    short = label.removeprefix(naming.capitalise(_item_name(item)).rstrip("0123456789")).lower()
    return f"{_item_label(field)}, {short}"


def _item_label(field: str) -> str:
    found = _ITEM.match(field)
    return naming.capitalise(_item_name(found)) if found else field


def _item_name(item: re.Match[str]) -> str:
    return _NAMES[item[1]](int(item[2]))
