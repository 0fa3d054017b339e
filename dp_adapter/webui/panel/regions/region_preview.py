"""What shows the picture to be made: the preview of the regions, the layout of boxes, the canvas for a mask."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gradio as gr

from dp_adapter.errors import DPAdapterError
from dp_adapter.webui.panel import lists
from dp_adapter.webui.panel.gradio_compat import ALWAYS_LAST, init_and_mask, js
from dp_adapter.webui.panel.handlers import EventBinder, Updates
from dp_adapter.webui.panel.host_components import HOST, INIT_IDS, UPLOADED_MASK
from dp_adapter.webui.panel.messages import explain, status_html
from dp_adapter.webui.panel.regions import box_canvas, mask_brush, region_drawing
from dp_adapter.webui.panel.regions.region_list import RegionList
from dp_adapter.webui.panel.widget_values import ARGS, settings_of
from dp_adapter.webui.panel.widgets import Widgets

if TYPE_CHECKING:
    from PIL.Image import Image


_MATTERS = ("photos", "regions", "sharing", "mode", "tracking", "parts", "face")


def _with_tab(inputs: list[Any]) -> dict[str, Any]:
    """Puts the number of img2img's open tab into the first input; the host's own function knows it.

    gradio hands over the outputs behind the inputs, and version 4 misplaces states when they are given back.
    """
    number = 'typeof get_tab_index === "function" ? get_tab_index("mode_img2img") : 0'
    return js(f"(...args) => [{number}, ...args.slice(1, {len(inputs)})]")


class RegionPreview:
    """The part's components; ``tab`` is filled by the browser, which also presses ``again`` when something changed."""

    def __init__(self, widgets: Widgets) -> None:
        name = widgets.elem_id
        self.button = gr.Button("Region preview", elem_id=name("region_preview"), size="sm")
        self.button.webui_tooltip = "Shows where each person will act in the picture to be made"
        self.again = gr.Button("Draw it again", elem_id=name("region_redraw"), visible=False)
        self.picture = gr.Image(
            label="Region preview",
            elem_id=name("region_picture"),
            visible=False,
            interactive=False,
            type="pil",
            height=320,
            show_download_button=False,
        )
        self.line = gr.HTML("")
        self.tab = gr.Number(0, visible=False, label="DP-Adapter img2img tab", elem_id=name("img2img_tab"))
        for component in (self.button, self.again, self.picture, self.tab):
            widgets.exclude_from_config(component)


def wire(part: RegionPreview, regions: RegionList, args: list[Any], is_img2img: bool, events: EventBinder) -> None:
    seen = _HostPictures(is_img2img)

    def show(tab: float, *values: Any) -> Updates:
        host, panel = values[: len(seen.components)], values[len(seen.components) :]
        canvas, init, inpaint = seen.canvas(int(tab), host)
        # A closed panel shows its regions as well.
        settings = settings_of([panel[0], True, *panel[2:]])
        drawn = region_drawing.draw_regions(settings, canvas, init, inpaint)
        shown = gr.update(value=drawn.picture, visible=True)
        return {part.picture: shown, part.line: status_html(drawn.lines)}

    def show_again(tab: float, *values: Any) -> Updates:
        try:
            return show(tab, *values)
        except DPAdapterError as error:  # nobody pressed a button: no message pops up
            return {part.line: status_html(explain(error), "warning")}

    def paint(tab: float, text: str, selected: int, *host: Any) -> Updates:
        under, _, _ = seen.canvas(int(tab), host)
        items = lists.read(text)
        mask = str(items[selected].get("mask", "")) if 0 <= selected < len(items) else ""
        return {regions.canvas: mask_brush.draw_canvas(under, mask, regions.strokes.elem_id), regions.strokes: ""}

    def lay_out(tab: float, *host: Any) -> Updates:
        picture, _, _ = seen.canvas(int(tab), host)
        return {
            regions.layout: gr.update(visible=True),
            regions.under: box_canvas.style_with_picture(picture, regions.layout.elem_id),
        }

    shown_with = [part.tab, *seen.components, *args]
    outputs = [part.picture, part.line]
    events.on(part.button.click, show, shown_with, outputs, show_progress="full", **_with_tab(shown_with))
    options = {**ALWAYS_LAST, **_with_tab(shown_with)}
    events.on(part.again.click, show_again, shown_with, outputs, keep_line=True, **options)
    for component in args_that_matter(args):
        _redraw_on_change(component, part.again.elem_id)
    for component in seen.components:
        _redraw_on_change(component, part.again.elem_id, regions.open_layout.elem_id)
    painted_with = [part.tab, regions.text, regions.selected, *seen.components]
    laid_out_with = [part.tab, *seen.components]
    outputs = [regions.layout, regions.under]
    events.on(regions.open_layout.click, lay_out, laid_out_with, outputs, **_with_tab(laid_out_with))
    outputs = [regions.canvas, regions.strokes]
    events.on(regions.open_canvas.click, paint, painted_with, outputs, **_with_tab(painted_with))


def args_that_matter(args: list[Any]) -> list[Any]:
    """The panel's components that change where somebody acts."""
    return [component for name, component in zip(ARGS, args, strict=True) if name.split(".")[0] in _MATTERS]


def _redraw_on_change(component: Any, *buttons: str) -> None:
    """What these buttons drew is drawn anew when a component changes; nothing where it is not shown."""
    component.change(fn=None, inputs=[], outputs=[], **js(f"() => dpAdapterRedraw({json.dumps(buttons)})"))


class _HostPictures:
    """The host's components that a preview reads, as far as they are on this page."""

    def __init__(self, is_img2img: bool) -> None:
        tab = "img2img" if is_img2img else "txt2img"
        names = [f"{tab}_width", f"{tab}_height"]
        if is_img2img:
            names += [*INIT_IDS, *(f"{name}:foreground" for name in INIT_IDS), UPLOADED_MASK]
        found = {name: HOST.find(name) for name in names}
        self._names = [name for name, component in found.items() if component is not None]
        self.components = [found[name] for name in self._names]
        self._size = (f"{tab}_width", f"{tab}_height")

    def canvas(self, tab: int, values: tuple[Any, ...]) -> tuple[Image, bool, Image | None]:
        """What is under the regions, whether it is an init picture, and the inpaint mask."""
        by_name = dict(zip(self._names, values, strict=True))
        width, height = (float(by_name.get(name) or 512) for name in self._size)
        name = INIT_IDS[tab] if 0 <= tab < len(INIT_IDS) else INIT_IDS[0]
        init, mask = init_and_mask(by_name.get(name), by_name.get(f"{name}:foreground"))
        if name == INIT_IDS[-1]:
            _, mask = init_and_mask({"mask": by_name.get(UPLOADED_MASK)}, None)
        return region_drawing.make_canvas(width, height, init), init is not None, mask if name in INIT_IDS[2:] else None
