"""The closed groups of the panel that hold nothing but widgets of fields."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dp_adapter.modes import EXPRESSIONS
from dp_adapter.settings import Parts
from dp_adapter.settings.fields import fields_of
from dp_adapter.webui.panel import curve_plot, mode_choice
from dp_adapter.webui.panel.handlers import EventBinder, Updates
from dp_adapter.webui.panel.widgets import Widgets

PARTS = tuple(f"parts.{info.name}" for info in fields_of(Parts))


def make_group(widgets: Widgets, title: str, name: str) -> Any:
    return gr.Accordion(title, open=False, elem_id=widgets.elem_id(f"group_{name}"), elem_classes=["dp-adapter-group"])


def add_strength(widgets: Widgets, events: EventBinder, enabled: Any) -> None:
    """Weight, start, end and mode, which everybody uses, and the fields that some modes need."""
    with gr.Row():
        widgets.add("weight", scale=2, min_width=200)
        widgets.add("span.start", min_width=90)
        widgets.add("span.end", scale=2, min_width=160)
    widgets.add("mode")
    for path in mode_choice.FIELDS:
        if path == "expression":
            names = list(EXPRESSIONS)
            widgets.add(path, make=gr.Dropdown, choices=names, allow_custom_value=True, visible=False)
        else:
            widgets.add(path, visible=False)
    typed = widgets.add_hidden("DP-Adapter typed", widgets.elem_id("expression_typed"))
    line = gr.HTML("", elem_id=widgets.elem_id("mode_does"))
    widgets.add("mode_words")
    mode_choice.wire(widgets, line, typed, enabled, events)


def add_faces(widgets: Widgets, events: EventBinder) -> None:
    with make_group(widgets, "Which face, several photos", "faces"):
        widgets.row("combine", "no_face")
        with gr.Row():
            choice = widgets.add("face.choice")
            owned = {"index": widgets.add("face.index", visible=False), "like": widgets.add("face.like", visible=False)}
            widgets.add("face.min_size")

    def show(chosen: str | None) -> Updates:
        return {component: gr.update(visible=chosen == name) for name, component in owned.items()}

    events.on(choice.change, show, [choice], list(owned.values()), keep_line=True)


def add_pathways(widgets: Widgets) -> None:
    with make_group(widgets, "Text and identity pathways", "pathways"):
        widgets.row("text_weight", "text_emphasis")
        widgets.row("blend", "structure", "lora_weight")
        widgets.row("identity_guidance", "strict_text_region", "free_parts")
        widgets.row("text_side.lock", "text_side.weight")
        widgets.row("reference_attention.weight", "reference_attention.start", "reference_attention.end")


def add_families(widgets: Widgets) -> None:
    """What only some kinds of models have, and files beside the model."""
    with make_group(widgets, "Kinds of models", "families"):
        with gr.Row():
            widgets.add("pulid_method")
            widgets.add("text_side.personal", make=gr.Dropdown, choices=[], allow_custom_value=True)
        widgets.row("identity_net.use", "identity_net.model")
        widgets.row("identity_net.weight", "identity_net.end")
        widgets.row("w_plus.age", "w_plus.direction", "w_plus.amount")
        with gr.Row():
            widgets.add("companion.model", make=gr.Dropdown, choices=[], allow_custom_value=True)
            widgets.add("companion.weight")


def add_tracking(widgets: Widgets) -> None:
    widgets.row("sharing")
    widgets.row("tracking.sources")
    widgets.row("tracking.fallback", "tracking.moments")
    widgets.row("tracking.decoder", "tracking.words")
    widgets.row("tracking.grow", "tracking.feather")


def add_parts(widgets: Widgets) -> None:
    with make_group(widgets, "Parts of the head", "parts"):
        for start in range(0, len(PARTS), 4):
            widgets.row(*PARTS[start : start + 4], min_width=90)


def add_schedule(widgets: Widgets, events: EventBinder) -> None:
    with make_group(widgets, "Schedule", "schedule"):
        text = widgets.add("curve")
        picture = gr.HTML(curve_plot.draw_curve(""), elem_id=widgets.elem_id("curve_picture"))
        widgets.row("levels.down", "levels.middle", "levels.up")
        widgets.row("gate.down", "gate.middle", "gate.up")
        widgets.row("levels.sites")
    start, end = widgets.by_path["span.start"], widgets.by_path["span.end"]

    def draw(typed: str | None, begin: str | None, stop: float | None) -> Updates:
        return {picture: curve_plot.draw_curve(typed or "", _number(begin, 0.0), _number(stop, 1.0))}

    for component in (text, start, end):
        events.on(component.change, draw, [text, start, end], [picture], keep_line=True)


def add_hires(widgets: Widgets, events: EventBinder) -> None:
    with make_group(widgets, "Hires pass", "hires"):
        use = widgets.add("hires.use")
        with gr.Row(visible=False) as own:
            widgets.add("hires.weight", scale=2, min_width=160)
            widgets.add("hires.span.start", min_width=90)
            widgets.add("hires.span.end", scale=2, min_width=160)

    def show(chosen: str | None) -> Updates:
        return {own: gr.update(visible=chosen == "own")}

    events.on(use.change, show, [use], [own], keep_line=True)


def add_face_pass(widgets: Widgets) -> None:
    with make_group(widgets, "Face pass", "face_pass"):
        widgets.row("face_pass.use", "face_pass.strength")
        widgets.row("face_pass.weight", "face_pass.size")


def add_performance(widgets: Widgets) -> None:
    with make_group(widgets, "Performance", "performance"):
        widgets.row("performance.form", "performance.memory_mb")


def add_report(widgets: Widgets) -> None:
    with make_group(widgets, "Report", "report"):
        widgets.row("report.enabled", "report.drift")
        widgets.row("report.masks", "report.overlay")
        widgets.row("report.best_of", "report.least", "report.below")


def _number(text: str | float | None, otherwise: float) -> float:
    try:
        return min(max(float(str(text).replace(",", ".")), 0.0), 1.0)
    except ValueError:
        return otherwise
