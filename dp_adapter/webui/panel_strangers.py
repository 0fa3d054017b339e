"""Whether a photo that was just dropped shows somebody else: the question, its answer by a click, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from dp_adapter import naming
from dp_adapter.webui import panel_lists, shared
from dp_adapter.webui.panel_handlers import Speaking, Updates
from dp_adapter.webui.panel_lists import Item
from dp_adapter.webui.panel_photos import Photos, common_face
from dp_adapter.webui.panel_widgets import Widgets
from dp_adapter.webui.panel_words import status

if TYPE_CHECKING:
    from dp_adapter.session.strangers import Stranger


@dataclass(frozen=True)
class Question:
    """The part's components.

    Attributes:
        made: what the last answer changed, [image, person before], or nothing.
    """

    asked: Any
    row: Any
    other: Any
    same: Any
    undo: Any
    made: Any

    @property
    def drawn(self) -> list[Any]:
        return [self.asked, self.row, self.other, self.undo]


def build(widgets: Widgets) -> Question:
    name = widgets.elem_id
    asked = gr.HTML("", elem_id=name("stranger"))
    with gr.Row(visible=False) as row:
        other = gr.Button("Make it person 2", elem_id=name("stranger_other"), variant="primary", size="sm")
        same = gr.Button("It is the same person", elem_id=name("stranger_same"), size="sm")
    undo = gr.Button("Undo", visible=False, elem_id=name("stranger_undo"), size="sm")
    for button in (other, same, undo):
        widgets.volatile(button)
    return Question(asked, row, other, same, undo, gr.State([]))


def wire(part: Question, photos: Photos, face: list[Any], speaking: Speaking) -> None:
    state = [photos.text, photos.asking, part.made]

    def draw(text: str, asking: list[str], made: list[Any], *choice: Any) -> Updates:
        return _drawn(part, panel_lists.read(text), asking, made, choice)

    def other(text: str, asking: list[str], made: list[Any], *choice: Any) -> Updates:
        items = panel_lists.read(text)
        one = _first(items, asking, choice)
        if one is None or one.instead is None:
            return _drawn(part, items, asking, made, choice)
        image = items[one.photo]["image"]
        changed = panel_lists.changed(items, one.photo, identity=one.instead)
        return {
            photos.text: panel_lists.written(changed),
            photos.selected: one.photo,
            photos.asking: [left for left in asking if left != image],
            part.made: [image, one.person],
        }

    def same(text: str, asking: list[str], made: list[Any], *choice: Any) -> Updates:
        items = panel_lists.read(text)
        one = _first(items, asking, choice)
        left = [image for image in asking if one is not None and image != items[one.photo]["image"]]
        return {photos.asking: left, **_drawn(part, items, left, made, choice)}

    def undo(text: str, made: list[Any]) -> Updates:
        items = panel_lists.read(text)
        number = _number(items, made)
        back = items if number is None else panel_lists.changed(items, number, identity=made[1])
        return {photos.text: panel_lists.written(back), part.made: []}

    speaking.on(photos.text.change, draw, [*state, *face], part.drawn, keeps=True)
    answered = [photos.text, photos.selected, photos.asking, part.made, *part.drawn]
    speaking.on(part.other.click, other, [*state, *face], answered)
    speaking.on(part.same.click, same, [*state, *face], [photos.asking, *part.drawn])
    speaking.on(part.undo.click, undo, [photos.text, part.made], [photos.text, part.made])


def _first(items: list[Item], asking: list[str], choice: Any) -> Stranger | None:
    """The first dropped photo that nobody was asked about and that shows somebody else."""
    added = {number for number, item in enumerate(items) if item.get("image") in asking}
    if not added or len(items) < 2:
        return None
    from dp_adapter.session.strangers import strangers

    session = shared.session()
    return next(iter(strangers(session.photos, session.encoders.yunet, items, common_face(choice), added)), None)


def _drawn(part: Question, items: list[Item], asking: list[str], made: list[Any], choice: Any) -> Updates:
    one = _first(items, asking, choice)
    number = _number(items, made)
    told = "" if number is None else _told(number, items[number])
    instead = None if one is None else one.instead
    return {
        part.asked: status([told, "" if one is None else one.words], "note" if one is None else "warning"),
        part.row: gr.update(visible=one is not None),
        part.other: gr.update(
            value="Make it person 2" if instead is None else f"Make it {naming.person(instead)}",
            visible=instead is not None,
        ),
        part.undo: gr.update(visible=number is not None),
    }


def _told(number: int, item: Item) -> str:
    return f"{naming.begun(naming.photo(number))} is {naming.person(item.get('identity', 0))} now."


def _number(items: list[Item], made: list[Any]) -> int | None:
    """The photo that the last answer changed, while that still holds."""
    places = (number for number, item in enumerate(items) if made and item.get("image") == made[0])
    return next((number for number in places if items[number].get("identity", 0) != made[1]), None)
