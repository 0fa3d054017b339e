"""The panel: an accordion in the txt2img and the img2img tab whose widgets make a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from modules.ui_components import InputAccordion

from dp_adapter import __version__
from dp_adapter.webui.panel import groups, model_list, saved_identities
from dp_adapter.webui.panel.handlers import EventBinder
from dp_adapter.webui.panel.photos import photo_list, strangers_question
from dp_adapter.webui.panel.regions import region_list, region_preview
from dp_adapter.webui.panel.widget_values import ARGS
from dp_adapter.webui.panel.widgets import Widgets


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
    request = widgets.add_hidden("DP-Adapter request", script.elem_id("request"))
    enabled = InputAccordion(False, label="DP-Adapter", elem_id=script.elem_id("enabled"))
    with enabled:
        with enabled.extra():
            gr.HTML(f'<span class="dp-adapter-version">{__version__}</span>')
        photos = photo_list.PhotoList(widgets)
        question = strangers_question.StrangersQuestion(widgets)
        events = EventBinder(gr.HTML("", elem_id=script.elem_id("status")))
        groups.add_faces(widgets, events)
        model = model_list.ModelPicker(widgets)
        groups.add_strength(widgets, events, enabled)
        groups.add_pathways(widgets)
        groups.add_families(widgets)
        with groups.make_group(widgets, "Regions", "regions"):
            regions = region_list.RegionList(widgets)
            groups.add_tracking(widgets)
            preview = region_preview.RegionPreview(widgets)
        groups.add_parts(widgets)
        groups.add_schedule(widgets, events)
        groups.add_hires(widgets, events)
        groups.add_face_pass(widgets)
        with groups.make_group(widgets, "Saved identities", "identities"):
            identities = saved_identities.SavedIdentityList(widgets)
        groups.add_performance(widgets)
        groups.add_report(widgets)
    by_name = {"request": request, "enabled": enabled, "photos": photos.text, "regions": regions.text}
    by_name |= widgets.by_path
    components = [by_name[name] for name in ARGS]
    face = [widgets.by_path[path] for path in photo_list.FACE_PATHS]
    photo_list.wire(photos, widgets, events)
    strangers_question.wire(question, photos, face, events)
    model_list.wire(model, enabled, events)
    region_list.wire(regions, photos, events)
    region_preview.wire(preview, regions, components, is_img2img, events)
    saved_identities.wire(identities, photos, enabled, face, events)
    return Panel(components, by_name, events.line)
