"""Saved identities: adding one to the photos, saving the photos as one, deleting one."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dp_adapter.errors import IdentityError
from dp_adapter.settings import Settings
from dp_adapter.webui.host import shared_session
from dp_adapter.webui.panel import lists
from dp_adapter.webui.panel.handlers import EventBinder, Updates
from dp_adapter.webui.panel.messages import status_html
from dp_adapter.webui.panel.photos.photo_list import PhotoList, read_face_choice
from dp_adapter.webui.panel.widgets import Widgets


class SavedIdentityList:
    """The part's components; ``question`` holds the two buttons that ask before deleting."""

    def __init__(self, widgets: Widgets) -> None:
        name = widgets.elem_id
        with gr.Row(elem_classes=["dp-adapter-tools"]):
            self.saved = gr.Dropdown(choices=[], value=None, label="Saved identity", elem_id=name("identity"))
            self.refresh = widgets.add_tool("🔄", "identities_refresh", "Read the folder again")
            self.use = widgets.add_tool("➕", "identity_use", "Add this identity to the photos")
            self.delete = widgets.add_tool("🗑", "identity_delete", "Delete this identity")
        with gr.Row(visible=False) as self.question:
            self.yes = gr.Button("Delete it for good", elem_id=name("identity_delete_yes"), variant="stop", size="sm")
            self.no = gr.Button("Keep it", elem_id=name("identity_delete_no"), size="sm")
        with gr.Row(elem_classes=["dp-adapter-tools"]):
            self.name = gr.Textbox("", label="Save person 1 as", elem_id=name("identity_name"), max_lines=1)
            what = "Save the photos of person 1 under this name, without the pictures themselves"
            self.save = widgets.add_tool("💾", "identity_save", what)
        for component in (self.saved, self.yes, self.no, self.name):
            widgets.exclude_from_config(component)


def wire(part: SavedIdentityList, photos: PhotoList, enabled: Any, face: list[Any], events: EventBinder) -> None:
    def list_names(chosen: str | None = None) -> Updates:
        names = list(shared_session.session().identities.names())
        return {part.saved: gr.update(choices=names, value=chosen if chosen in names else None)}

    def use(chosen: str | None, text: str, added: list[str]) -> Updates:
        new = lists.new_photo(f"identity:{_require_choice(chosen)}", "")
        items = lists.append(lists.read(text), [new], "photo")
        state = {photos.text: lists.write(items), photos.selected: len(items) - 1}
        return {**state, photos.added: [*added, new["image"]]}

    def save(name: str, text: str, *choice: Any) -> Updates:
        items = [{k: v for k, v in item.items() if k != "name"} for item in lists.read(text)]
        settings = Settings.from_dict({"references": items, "face": read_face_choice(choice)})
        if not items:
            raise IdentityError("There is no photo to save an identity from", "Drop some photos first.")
        made = shared_session.session().save_identity(name.strip(), settings)
        lines = [f"Saved '{made.name}' from {len(made.hashes)} photo(s).", *made.notes]
        return {**list_names(made.name), part.name: "", events.line: status_html(lines)}

    def delete(chosen: str | None, text: str, selected: int) -> Updates:
        name = _require_choice(chosen)
        shared_session.session().identities.delete(name)
        items = lists.read(text)
        left = [item for item in items if item.get("image") != f"identity:{name}"]
        gone: Updates = {}
        if len(left) < len(items):
            gone = {photos.text: lists.write(left), photos.selected: lists.clamp(left, selected)}
        line = status_html(f"Deleted '{name}'.")
        return {**list_names(), **gone, part.question: gr.update(visible=False), events.line: line}

    def ask(chosen: str | None) -> Updates:
        name = _require_choice(chosen)
        asked = status_html(f"Delete the saved identity '{name}'? Its file will be gone.", "warning")
        return {part.question: gr.update(visible=True), events.line: asked}

    def first(on: bool, chosen: str | None) -> Updates:
        return list_names(chosen) if on else {}

    events.on(enabled.change, first, [enabled, part.saved], [part.saved], keep_line=True)
    events.on(part.refresh.click, list_names, [part.saved], [part.saved])
    added = [photos.text, photos.selected, photos.added]
    events.on(part.use.click, use, [part.saved, photos.text, photos.added], added)
    events.on(part.save.click, save, [part.name, photos.text, *face], [part.saved, part.name], show_progress="full")
    events.on(part.delete.click, ask, [part.saved], [part.question])
    state = [photos.text, photos.selected]
    events.on(part.yes.click, delete, [part.saved, *state], [part.saved, part.question, *state])
    events.on(part.no.click, lambda: {part.question: gr.update(visible=False)}, [], [part.question])


def _require_choice(chosen: str | None) -> str:
    if not chosen:
        raise IdentityError("No saved identity is chosen", "Choose one in the list.")
    return chosen
