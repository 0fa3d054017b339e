"""The modes in the panel: what the chosen one does, told before generating, and the fields that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from dp_adapter.errors import SettingsError
from dp_adapter.modes import Mode, Modes, describe_effect
from dp_adapter.settings import Choice, Settings, field_at
from dp_adapter.webui.host import compat
from dp_adapter.webui.panel.handlers import EventBinder, Updates
from dp_adapter.webui.panel.messages import status_html
from dp_adapter.webui.panel.widget_values import field_value
from dp_adapter.webui.panel.widgets import Widgets

FIELDS = ("target_age", "reference_age", "expression", "retouch", "restorer")
_READ = ("mode", *FIELDS, "mode_words", "weight", "span.start")


def asks_for(mode: Mode) -> set[str]:
    """Which of ``FIELDS`` a mode reads."""
    ways = {"retouch": mode.retouch, "restorer": mode.restore}
    return {*mode.reads, *(path for path, read in ways.items() if read)}


def propose_values(mode: Mode, given: Mapping[str, Any]) -> dict[str, str]:
    """What the mode takes for the fields that it asks for and that are empty, as their widgets show it."""
    own = {"target_age": str(mode.target_age), "expression": mode.expression}
    return {path: own[path] for path in own if path in mode.needs and not str(given[path] or "").strip()}


def wire(widgets: Widgets, line: Any, typed: Any, enabled: Any, events: EventBinder) -> None:
    """Shows what the mode does whenever something changes that it says, and lists the user's own modes.

    Args:
        typed: hidden, an expression while it is typed, from the browser: dropdowns take text over when they are left.
    """
    read = [widgets.by_path[path] for path in _READ]
    owned = {path: widgets.by_path[path] for path in FIELDS}

    def choose(*values: Any) -> Updates:
        """Fields that the mode asks for appear with what it would take itself."""
        given: dict[str, Any] = dict(zip(_READ, values, strict=True))
        try:
            mode = _find_mode(given)
        except SettingsError:
            return tell(*values)
        wanted: set[str] = asks_for(mode) if mode else set()
        filled = propose_values(mode, given) if mode else {}
        shown: Updates = {
            component: gr.update(visible=path in wanted, **({"value": filled[path]} if path in filled else {}))
            for path, component in owned.items()
        }
        return {**shown, **tell(*(given | filled).values())}

    def tell(*values: Any) -> Updates:
        given: dict[str, Any] = dict(zip(_READ, values, strict=True))
        try:
            mode = _find_mode(given)
        except SettingsError as error:
            return {line: status_html(str(error), "error")}
        return {line: status_html(_describe(given, mode) if mode else "")}

    def tell_typed(sent: str, *values: Any) -> Updates:
        text = sent.rpartition("\n")[0]  # behind it is the time, as the same text may be typed again
        return tell(*(text if path == "expression" else value for path, value in zip(_READ, values, strict=True)))

    def list_modes(on: bool) -> Updates:
        return {widgets.by_path["mode"]: gr.update(choices=_mode_names())} if on else {}

    events.on(widgets.by_path["mode"].change, choose, read, [*owned.values(), line], keep_line=True)
    for path in ("target_age", "reference_age", "expression", "mode_words", "span.start"):
        events.on(widgets.by_path[path].change, tell, read, [line], keep_line=True)
    events.on(typed.change, tell_typed, [typed, *read], [line], keep_line=True)
    events.on(enabled.change, list_modes, [enabled], [widgets.by_path["mode"]], keep_line=True)


def _find_mode(given: Mapping[str, Any]) -> Mode | None:
    """The chosen mode; None for the portrait, which does nothing.

    Raises:
        SettingsError: there is none of this name.
    """
    name = str(given["mode"] or "portrait")
    return None if name == "portrait" else _read_modes().of(name)


def _mode_names() -> list[str]:
    kind = field_at("mode").kind
    assert isinstance(kind, Choice)
    return [*kind.choices, *_read_modes().own()]


def _read_modes() -> Modes:
    """As the session's, which need not be made for them."""
    return Modes([compat.models_folder()])


def _describe(given: dict[str, Any], mode: Mode) -> list[str]:
    """What the mode does with these values; in general where one of them is refused."""
    changes = {path: field_value(field_at(path), value) for path, value in given.items()}
    try:
        return list(describe_effect(Settings().with_fields(changes), mode))
    except SettingsError:
        return [f"{mode.title}: {mode.does}" if mode.does else mode.title]
