"""Photos at the head of the panel: dropping, choosing one, its weight, person, order and face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from dp_adapter import naming
from dp_adapter.errors import DPAdapterError, PictureError
from dp_adapter.settings import Settings, field_at
from dp_adapter.webui.host import shared_session
from dp_adapter.webui.panel import lists
from dp_adapter.webui.panel.gradio_compat import uploads
from dp_adapter.webui.panel.handlers import EventBinder, Updates
from dp_adapter.webui.panel.list_editing import ListEditing
from dp_adapter.webui.panel.lists import Item
from dp_adapter.webui.panel.messages import explain, status_html
from dp_adapter.webui.panel.photos import face_choice, thumbnails
from dp_adapter.webui.panel.widget_values import field_value
from dp_adapter.webui.panel.widgets import Widgets

PERSONS = [str(number) for number in range(1, 9)]
FACE_FIELDS = ("choice", "index", "like", "min_size")
FACE_PATHS = tuple(f"face.{name}" for name in FACE_FIELDS)


class PhotoList:
    """The part's components.

    Attributes:
        text: hidden, the JSON list that the script gets. Whatever changes it redraws the part.
        selected: index of the chosen photo, -1 for none.
        added: texts of photos that were dropped here, in this page; not of pasted ones.
        clicked, face_clicked: hidden, the number of a clicked thumbnail and the time, from the browser. gradio's own
            selection stays where it was when a gallery is drawn anew, and a click there is then not told.
    """

    def __init__(self, widgets: Widgets) -> None:
        name = widgets.elem_id
        self.text = widgets.add_hidden("DP-Adapter photos", name("photos"))
        self.selected, self.added = gr.State(-1), gr.State([])
        self.drop = gr.File(
            label="Photos", file_count="multiple", elem_id=name("drop"), elem_classes=["dp-adapter-drop"]
        )
        self.drop.webui_tooltip = (
            "Photos of the person: drop them, click to choose, or paste with Ctrl+V while the mouse is here."
        )
        self.gallery = _make_gallery("Photos in use", name("gallery"), "dp-adapter-photos")
        with gr.Row(visible=False, elem_classes=["dp-adapter-photo"]) as self.editor:
            self.weight = widgets.make("references[].weight", scale=4)
            self.person = widgets.make(
                "references[].identity", value="1", make=gr.Dropdown, choices=PERSONS, scale=1, min_width=130
            )
            self.words = widgets.make("references[].words", scale=2, min_width=130)
            self.earlier = widgets.add_tool("◀", "earlier", "Move this photo forward")
            self.later = widgets.add_tool("▶", "later", "Move this photo back")
            self.remove = widgets.add_tool("🗑", "remove", "Remove this photo")
        self.line = gr.HTML("", elem_id=name("faces_said"))
        self.faces = _make_gallery("Faces in this photo", name("faces"), "dp-adapter-faces")
        why = "Let the common face choice decide for this photo again"
        self.any_face = widgets.add_tool("↺", "any_face", why, visible=False)
        self.clicked = widgets.add_hidden("DP-Adapter clicked photo", f"{self.gallery.elem_id}_clicked")
        self.face_clicked = widgets.add_hidden("DP-Adapter clicked face", f"{self.faces.elem_id}_clicked")


def _make_gallery(label: str, elem_id: str, css: str) -> Any:
    return gr.Gallery(
        label=label,
        elem_id=elem_id,
        elem_classes=[css],
        show_label=False,
        visible=False,
        allow_preview=False,
        show_download_button=False,
        interactive=False,
    )


def wire(part: PhotoList, widgets: Widgets, events: EventBinder) -> None:
    """Binds the part's events. The text and the selection are the state; drawing follows from them."""
    common = [widgets.by_path[path] for path in FACE_PATHS]
    editing = ListEditing(events, part.text, part.selected)
    drawn = [
        part.gallery, part.editor, part.weight, part.person, part.words, part.line, part.faces, part.any_face,
        part.selected,
    ]  # fmt: skip

    def draw(text: str, selected: int, *face: Any) -> Updates:
        return _draw(part, text, selected, face)

    def add(files: object, text: str, added: list[str]) -> Updates:
        before = lists.read(text)
        items, problems = _add_uploads(before, files)
        refusal = {events.line: status_html(problems, "error")} if problems else {}
        new = [item["image"] for item in items[len(before) :]]
        state = {part.text: lists.write(items), part.selected: len(items) - 1, part.added: [*added, *new]}
        return {part.drop: None, **state, **refusal}

    events.on(part.text.change, draw, [*editing.state, *common], drawn, keep_line=True)
    for component in common:
        events.on(component.change, draw, [*editing.state, *common], drawn, keep_line=True)
    events.on(part.drop.upload, add, [part.drop, part.text, part.added], [part.drop, *editing.state, part.added])

    def choose(clicked: str, text: str, *face: Any) -> Updates:
        return _draw(part, text, _clicked_number(clicked), face)

    def choose_face(item: Item, clicked: str) -> Item:
        return {"face": {**(item.get("face") or {}), "choice": "index", "index": _clicked_number(clicked)}}

    events.on(part.clicked.change, choose, [part.clicked, part.text, *common], drawn)
    editing.on_input(part.face_clicked, choose_face, event=part.face_clicked.change)
    editing.on_click(part.earlier.click, lambda items, index: lists.move(items, index, -1))
    editing.on_click(part.later.click, lambda items, index: lists.move(items, index, 1))
    editing.on_click(part.remove.click, lists.remove)
    editing.on_input(part.any_face, lambda _item, _: {"face": None}, event=part.any_face.click)
    editing.on_input(part.weight, lambda _item, weight: {"weight": weight})
    editing.on_input(part.words, lambda _item, typed: {"words": typed}, event=part.words.blur)
    editing.on_input(part.person, lambda _item, person: {"identity": int(person) - 1})


def read_face_choice(values: Sequence[Any]) -> Item:
    """The face choice of all photos, as in a request, from its widgets' values."""
    return {name: field_value(field_at(f"face.{name}"), value) for name, value in zip(FACE_FIELDS, values, strict=True)}


def _clicked_number(clicked: str) -> int:
    return int(clicked.split(maxsplit=1)[0])


def _add_uploads(items: list[Item], files: object) -> tuple[list[Item], list[str]]:
    """The list with the uploaded pictures behind it, and what is wrong with those that are none."""
    new: list[Item] = []
    problems: list[str] = []
    for path, name in uploads(files):
        try:
            new.append(lists.new_photo(f"photo:{shared_session.session().dropped_photos.add(path.read_bytes())}", name))
        except DPAdapterError as error:
            problems.append(f"{name}: {explain(error)}")
    return lists.append(items, new, "photo"), problems


def _draw(part: PhotoList, text: str, selected: int, face: Any) -> Updates:
    items = lists.read(text)
    index = lists.clamp(items, selected)
    item = items[index] if items else {}
    common = read_face_choice(face)
    updates: Updates = {
        part.gallery: gr.update(value=thumbnails.make_gallery(items), visible=bool(items)),
        part.editor: gr.update(visible=bool(items)),
        part.weight: item.get("weight", 1.0),
        part.person: str(item.get("identity", 0) + 1),
        part.words: item.get("words", ""),
        part.any_face: gr.update(visible=item.get("face") is not None),
        part.selected: index,
        part.line: "",
        part.faces: gr.update(value=[], visible=False),
    }
    if not items:
        return updates
    name = naming.capitalise(naming.photo(index))
    try:
        found = face_choice.find_faces(item, common, name)
        line = status_html([found.words, *_list_problems(items)], "warning" if found.warns else "note")
        shown = gr.update(value=list(found.pictures), visible=len(found.pictures) > 1)
    except DPAdapterError as error:
        problem = explain(error) if isinstance(error, PictureError) else f"{name}: {explain(error)}"
        line, shown = status_html(problem, "error"), updates[part.faces]
    return {**updates, part.line: line + _mark_chosen(part, index), part.faces: shown}


def _list_problems(items: list[Item]) -> list[str]:
    """What the list itself says wrong, such as a person without a photo."""
    try:
        Settings.from_dict({"references": [{k: v for k, v in item.items() if k != "name"} for item in items]})
    except DPAdapterError as error:
        return [explain(error)]
    return []


def _mark_chosen(part: PhotoList, index: int) -> str:
    """A frame around the chosen photo: gradio forgets it when a gallery is drawn anew."""
    chosen = f"#{part.gallery.elem_id} .thumbnail-item:nth-child({index + 1})"
    return f"<style>{chosen} {{ outline: 3px solid var(--color-accent, orange); outline-offset: -3px; }}</style>"
