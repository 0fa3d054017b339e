"""Widgets made from the settings' fields: kind, label, range and tooltip are said there and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from modules.ui_components import ToolButton

from dp_adapter.settings import (
    Choice,
    CurveText,
    FieldInfo,
    Flag,
    Integer,
    Kind,
    ListOf,
    Nullable,
    Number,
    SiteFactors,
    field_at,
)
from dp_adapter.settings.messages import tidy
from dp_adapter.webui.panel.widget_values import default_of, widget_value

_EXAMPLES: Mapping[type[Kind], str] = {
    CurveText: "0@0.1, 1@0.3, 0.8@1",
    SiteFactors: "3: 0.5, 12: 0",
}


@dataclass
class Widgets:
    """The components of one panel while it is built.

    Attributes:
        elem_id: the host's way to make an element's id, different in the two tabs.
        by_path: one component for each path, in the order of their making.
    """

    elem_id: Callable[[str], str]
    by_path: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, path: str, **options: Any) -> Any:
        """The widget of a field of the request."""
        component = self.make(path, **options)
        self.by_path[path] = component
        return component

    def row(self, *paths: str, **options: Any) -> None:
        """Widgets of several fields beside each other."""
        with gr.Row():
            for path in paths:
                self.add(path, **options)

    def make(self, path: str, make: Any = None, **options: Any) -> Any:
        """A widget for a field, as for the chosen item of a list.

        Args:
            make: another component than the field's kind has; ``options`` are its arguments.
        """
        info = field_at(path)
        usual, arguments = _component_of(info)
        make, arguments = (usual, arguments) if make is None else (make, {})
        name = path.replace("[]", "").replace(".", "_")
        named = {"label": info.label, "value": default_of(path), "elem_id": self.elem_id(name)}
        component = make(**{**named, **arguments, **options})
        component.webui_tooltip = info.help
        if "[]" in path:
            component.do_not_save_to_config = True
        return component

    def add_tool(self, symbol: str, name: str, tooltip: str, **options: Any) -> Any:
        """A small button, which is no field of the request."""
        button = ToolButton(value=symbol, elem_id=self.elem_id(name), **options)
        button.webui_tooltip = tooltip
        return self.exclude_from_config(button)

    def add_hidden(self, label: str, elem_id: str) -> Any:
        """A hidden text box, which is no field of the request."""
        return self.exclude_from_config(gr.Textbox("", visible=False, label=label, elem_id=elem_id))

    def exclude_from_config(self, component: Any) -> Any:
        """Keeps a component out of the host's ui-config.json."""
        component.do_not_save_to_config = True
        return component


def _component_of(info: FieldInfo) -> tuple[Any, dict[str, Any]]:
    kind = info.kind
    if isinstance(kind, Flag):
        return gr.Checkbox, {}
    if isinstance(kind, Number | Integer):
        ends = {"minimum": widget_value(kind, kind.low), "maximum": widget_value(kind, kind.high)}
        return gr.Slider, {**ends, "step": kind.step}
    if isinstance(kind, Choice):
        return gr.Dropdown, {"choices": list(kind.choices), "allow_custom_value": bool(kind.own)}
    if isinstance(kind, ListOf) and isinstance(kind.item, Choice):
        return gr.Dropdown, {"choices": list(kind.item.choices), "multiselect": True}
    return gr.Textbox, {"max_lines": 1, "placeholder": _placeholder(info)}


def _placeholder(info: FieldInfo) -> str:
    if isinstance(info.kind, Nullable):
        return "automatic" if info.automatic is None else f"automatic ({tidy(info.automatic)})"
    return _EXAMPLES.get(type(info.kind), "")
