"""The panel: an accordion in the txt2img and the img2img tab whose widgets make a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from modules.ui_components import InputAccordion

from dp_adapter import __version__
from dp_adapter.webui import (
    panel_groups,
    panel_identities,
    panel_models,
    panel_photos,
    panel_preview,
    panel_regions,
    panel_strangers,
)
from dp_adapter.webui.panel_handlers import Speaking
from dp_adapter.webui.panel_widgets import Widgets
from dp_adapter.webui.values import ARGS


@dataclass(frozen=True)
class Panel:
    """One built panel.

    Attributes:
        components: the script's args in order, as ``Script.ui`` returns them.
        by_name: component by name of the arg: "enabled", "photos", "regions" or a field's path.
        status: the line that shows words, as HTML.
    """

    components: list[Any]
    by_name: Mapping[str, Any]
    status: Any


def build(script: Any, is_img2img: bool) -> Panel:
    """Builds a panel inside the current gradio page. Nothing of it is kept: the host asks for several."""
    widgets = Widgets(script.elem_id)
    request = gr.Textbox("", visible=False, label="DP-Adapter request", elem_id=script.elem_id("request"))
    widgets.volatile(request)
    enabled = InputAccordion(False, label="DP-Adapter", elem_id=script.elem_id("enabled"))
    with enabled:
        with enabled.extra():
            gr.HTML(f'<span class="dp-adapter-version">{__version__}</span>')
        photos = panel_photos.build(widgets)
        question = panel_strangers.build(widgets)
        speaking = Speaking(gr.HTML("", elem_id=script.elem_id("status")))
        panel_groups.faces(widgets, speaking)
        model = panel_models.build(widgets)
        panel_groups.strength(widgets, speaking, enabled)
        panel_groups.pathways(widgets)
        panel_groups.families(widgets)
        with panel_groups.group(widgets, "Regions", "regions"):
            regions = panel_regions.build(widgets)
            panel_groups.tracking(widgets)
            preview = panel_preview.build(widgets)
        panel_groups.parts(widgets)
        panel_groups.schedule(widgets, speaking)
        panel_groups.hires(widgets, speaking)
        panel_groups.face_pass(widgets)
        with panel_groups.group(widgets, "Saved identities", "identities"):
            identities = panel_identities.build(widgets)
        panel_groups.performance(widgets)
        panel_groups.report(widgets)
    by_name = {"request": request, "enabled": enabled, "photos": photos.text, "regions": regions.text}
    by_name |= widgets.by_path
    components = [by_name[name] for name in ARGS]
    face = [widgets.by_path[path] for path in panel_photos.FACE_PATHS]
    panel_photos.wire(photos, widgets, speaking)
    panel_strangers.wire(question, photos, face, speaking)
    panel_models.wire(model, enabled, speaking)
    panel_regions.wire(regions, photos, speaking)
    panel_preview.wire(preview, regions, components, is_img2img, speaking)
    panel_identities.wire(identities, photos, enabled, face, speaking)
    return Panel(components, by_name, speaking.line)
