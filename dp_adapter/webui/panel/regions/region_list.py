"""Regions: a list to choose from, boxes over a picture, and the chosen one's kind, box, mask and softness."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dp_adapter import naming
from dp_adapter.errors import DPAdapterError
from dp_adapter.settings import Settings, field_at
from dp_adapter.webui.host import shared_session
from dp_adapter.webui.panel import lists
from dp_adapter.webui.panel.gradio_compat import uploads
from dp_adapter.webui.panel.handlers import EventBinder, Updates
from dp_adapter.webui.panel.list_editing import Amend, ListEditing
from dp_adapter.webui.panel.lists import Item
from dp_adapter.webui.panel.messages import explain, status_html
from dp_adapter.webui.panel.photos.photo_list import PERSONS, PhotoList
from dp_adapter.webui.panel.regions import box_canvas, mask_brush
from dp_adapter.webui.panel.widget_values import field_value, widget_value
from dp_adapter.webui.panel.widgets import Widgets

PLAIN = ("kind", "op", "weight", "grow", "feather")  # fields whose widget holds the field's own value
NO_REGIONS = "No regions: each person acts where their face is found."


class RegionList:
    """The part's components.

    Attributes:
        text: hidden, the JSON list that the script gets. Whatever changes it redraws the part.
        under: style with the picture under the boxes of ``layout``.
        drags, strokes: hidden, what was drawn on layout and canvas, from the browser.
    """

    def __init__(self, widgets: Widgets) -> None:
        name = widgets.elem_id
        self.text = widgets.add_hidden("DP-Adapter regions", name("regions"))
        self.selected = gr.State(-1)
        with gr.Row(elem_classes=["dp-adapter-tools"]):
            self.chosen = gr.Dropdown(
                choices=[], value=None, label="Chosen region", elem_id=name("region"), type="index"
            )
            self.add = widgets.add_tool("➕", "region_add", "Add a region")
            self.remove = widgets.add_tool("🗑", "region_remove", "Remove the chosen region")
        self.line = gr.HTML(status_html(NO_REGIONS))
        self.open_layout = gr.Button("Draw boxes", elem_id=name("region_draw"), size="sm")
        self.open_layout.webui_tooltip = (
            "Shows the picture to be made, or the init picture, to draw regions on it as boxes"
        )
        self.drags = widgets.add_hidden("DP-Adapter drags", name("region_drags"))
        with gr.Column(visible=False, elem_id=name("region_layout")) as self.layout:
            self.under, self.boxes_drawn = gr.HTML(""), gr.HTML(box_canvas.draw_boxes([], -1, self.drags.elem_id))
        with gr.Column(visible=False) as self.editor:
            with gr.Row():
                kinds = ["auto", "full", "box", "mask"]
                self.fields = {
                    "kind": widgets.make("regions[].kind", make=gr.Radio, choices=kinds, scale=3, min_width=240)
                }
                self.fields["op"] = widgets.make(
                    "regions[].op", make=gr.Radio, choices=["add", "subtract"], scale=2, min_width=170
                )
                self.person = widgets.make(
                    "regions[].identity", value="1", make=gr.Dropdown, choices=PERSONS, scale=1, min_width=130
                )
            with gr.Column(visible=False) as self.boxes:
                for row in (box_canvas.SIDES[0::2], box_canvas.SIDES[1::2]):
                    with gr.Row():
                        for side in row:
                            self.fields[side] = widgets.make(f"regions[].box.{side}")
            with gr.Column(visible=False) as self.masks:
                self.upload = widgets.make(
                    "regions[].mask", make=gr.File, value=None, file_count="single", elem_classes=["dp-adapter-drop"]
                )
                self.open_canvas = gr.Button("Paint the mask", elem_id=name("region_paint"), size="sm")
                self.canvas = gr.HTML("")
                self.strokes = widgets.add_hidden("DP-Adapter strokes", name("region_strokes"))
            with gr.Row():
                for field in ("weight", "grow", "feather"):
                    self.fields[field] = widgets.make(f"regions[].{field}", min_width=120)
        for component in (self.chosen, self.open_layout, self.open_canvas):
            widgets.exclude_from_config(component)


def wire(part: RegionList, photos: PhotoList, events: EventBinder) -> None:
    """Binds the part's events, all but those of the buttons that need the host's picture."""
    editing = ListEditing(events, part.text, part.selected, clears=part.canvas)
    drawn = [
        part.selected, part.chosen, part.editor, *part.fields.values(), part.person, part.boxes, part.masks, part.line,
        part.boxes_drawn,
    ]  # fmt: skip

    def draw(text: str, selected: int, shown: str) -> Updates:
        return _draw(part, lists.read(text), selected, lists.read(shown))

    def choose(index: int | None, text: str, shown: str) -> Updates:
        return {**_draw(part, lists.read(text), index or 0, lists.read(shown)), part.canvas: ""}

    def dragged(text: str, selected: int, shown: str, sent: str) -> Updates:
        items, people = lists.read(text), lists.read(shown)
        drag = box_canvas.read_drag(sent)
        new, index = box_canvas.apply_drag(items, selected, drag, lists.persons_in(people))
        if new != items:
            return {part.text: lists.write(new), part.selected: index, part.canvas: ""}
        return {} if index == selected else {**_draw(part, items, index, people), part.canvas: ""}

    def add(text: str, selected: int, shown: str) -> Updates:
        persons = lists.persons_in(lists.read(shown))
        return editing.rearrange(text, selected, lambda items, index: (_add_region(items, index, persons), len(items)))

    def say(text: str, selected: int, shown: str) -> Updates:
        items = lists.read(text)
        item = items[selected] if 0 <= selected < len(items) else {}
        return {part.line: _describe(items, item, lists.read(shown))}

    state = [*editing.state, photos.text]
    events.on(part.text.change, draw, state, drawn, keep_line=True)
    events.on(photos.text.change, say, state, [part.line], keep_line=True)
    events.on(part.chosen.input, choose, [part.chosen, part.text, photos.text], [*drawn, part.canvas])
    events.on(part.drags.change, dragged, [*state, part.drags], [*drawn, part.text, part.canvas])
    events.on(part.add.click, add, state, [*editing.state, part.canvas])
    editing.on_click(part.remove.click, lists.remove)
    for field in PLAIN:
        editing.on_input(part.fields[field], _amend(field))
    for side in box_canvas.SIDES:
        editing.on_input(part.fields[side], _amend_side(side))
    editing.on_input(part.person, lambda _item, person: {"identity": int(person) - 1})
    editing.on_input(part.upload, _keep_upload, event=part.upload.upload, also=[part.upload])
    # An empty box is what opening the canvas leaves there, not an empty painting.
    painting = ListEditing(events, part.text, part.selected)
    painting.on_input(
        part.strokes,
        lambda _item, strokes: {"mask": mask_brush.keep_painting(strokes)} if strokes else {},
        event=part.strokes.change,
    )


def _add_region(items: list[Item], selected: int, persons: list[int]) -> list[Item]:
    new = lists.new_region(lists.next_person(items, selected, persons))
    return lists.append(items, [new], "region")


def _amend(field: str) -> Amend:
    if field == "kind":
        return lists.with_kind
    info = field_at(f"regions[].{field}")
    return lambda _item, value: {field: field_value(info, value)}


def _amend_side(side: str) -> Amend:
    return lambda item, value: {"box": {**(item.get("box") or {}), side: value}}


def _keep_upload(_item: Item, file: Any) -> Item:
    ((path, _),) = uploads(file)
    return {"mask": f"photo:{shared_session.session().dropped_photos.add(path.read_bytes(), mask=True)}"}


def _draw(part: RegionList, items: list[Item], selected: int, photos: list[Item]) -> Updates:
    index = lists.clamp(items, selected)
    item = items[index] if items else lists.new_region()
    captions = [_write_caption(number, one) for number, one in enumerate(items, 1)]
    kind = item.get("kind", "auto")
    box: Item = item.get("box") or {}
    updates: Updates = {
        part.selected: index,
        part.chosen: gr.update(choices=captions, value=captions[index] if items else None),
        part.editor: gr.update(visible=bool(items)),
        part.person: str(item.get("identity", 0) + 1),
        part.boxes: gr.update(visible=kind == "box"),
        part.masks: gr.update(visible=kind == "mask"),
        part.line: _describe(items, item, photos),
        part.boxes_drawn: box_canvas.draw_boxes(items, index, part.drags.elem_id),
    }
    for field in PLAIN:
        info = field_at(f"regions[].{field}")
        updates[part.fields[field]] = widget_value(info.kind, item.get(field, info.default))
    for side in box_canvas.SIDES:
        updates[part.fields[side]] = box.get(side, field_at(f"regions[].box.{side}").default)
    return updates


def _write_caption(number: int, item: Item) -> str:
    sign = "− " if item.get("op") == "subtract" else ""
    return f"{number} · {sign}{item.get('kind', 'auto')} · {naming.person(item.get('identity', 0))}"


def _describe(items: list[Item], item: Item, photos: list[Item]) -> str:
    """What is wrong with the regions as they are, and who has none, in words."""
    if not items:
        return status_html(NO_REGIONS)
    try:
        Settings.from_dict({"regions": items})
    except DPAdapterError as error:
        return status_html(explain(error), "warning")
    persons = lists.persons_in(photos)
    left, nobody = lists.persons_without_region(items, persons), _list_without_photo(items, persons)
    lines = ["A mask is set."] if item.get("kind") == "mask" else []
    lines += [
        f"{naming.capitalise(naming.person(one))} has no region and acts where their face is found." for one in left
    ]
    return status_html([*lines, *nobody], "warning" if left or nobody else "note")


def _list_without_photo(items: list[Item], persons: list[int]) -> list[str]:
    """Regions of persons of whom there is no photo, in words; none before there are photos."""
    return [
        f"{naming.capitalise(naming.region(number))} is for {naming.person(item.get('identity', 0))}, who has no photo."
        for number, item in enumerate(items)
        if persons and item.get("identity", 0) not in persons
    ]
