"""Whether a photo that was just dropped shows somebody else: the question, its answer by a click, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from dp_adapter import naming
from dp_adapter.webui.host import shared_session
from dp_adapter.webui.panel import lists
from dp_adapter.webui.panel.handlers import EventBinder, Updates
from dp_adapter.webui.panel.lists import Item
from dp_adapter.webui.panel.messages import status_html
from dp_adapter.webui.panel.photos.photo_list import PhotoList, read_face_choice
from dp_adapter.webui.panel.widgets import Widgets

if TYPE_CHECKING:
    from dp_adapter.session.photos.strangers import Stranger


class StrangersQuestion:
    """The part's components.

    Attributes:
        settled: texts of added photos of which it is known that they are no strangers, or that they may stay.
        made: what the last answer changed, [image, person before], or nothing.
    """

    def __init__(self, widgets: Widgets) -> None:
        name = widgets.elem_id
        self.line = gr.HTML("", elem_id=name("stranger"))
        with gr.Row(visible=False) as self.row:
            self.other = gr.Button("Make it person 2", elem_id=name("stranger_other"), variant="primary", size="sm")
            self.same = gr.Button("It is the same person", elem_id=name("stranger_same"), size="sm")
        self.undo = gr.Button("Undo", visible=False, elem_id=name("stranger_undo"), size="sm")
        for button in (self.other, self.same, self.undo):
            widgets.exclude_from_config(button)
        self.settled, self.made = gr.State([]), gr.State([])

    @property
    def outputs(self) -> list[Any]:
        return [self.line, self.row, self.other, self.undo]


def wire(part: StrangersQuestion, photos: PhotoList, face: list[Any], events: EventBinder) -> None:
    state = [photos.text, photos.added, part.settled, part.made]

    def draw(text: str, added: list[str], settled: list[str], made: list[Any], *choice: Any) -> Updates:
        items = lists.read(text)
        found = _find_strangers(items, added, settled, choice)
        # What is answered later about one photo must not make another one a stranger.
        open_still = [items[one.photo]["image"] for one in found]
        settled = [image for image in added if image not in open_still]
        return {part.settled: settled, **_draw(part, items, found, made)}

    def other(text: str, added: list[str], settled: list[str], made: list[Any], *choice: Any) -> Updates:
        items = lists.read(text)
        found = _find_strangers(items, added, settled, choice)
        if not found or found[0].instead is None:
            return _draw(part, items, found, made)
        one, image = found[0], items[found[0].photo]["image"]
        changed = lists.change(items, one.photo, identity=one.instead)
        state = {photos.text: lists.write(changed), photos.selected: one.photo}
        return {**state, part.settled: [*settled, image], part.made: [image, one.person]}

    def same(text: str, added: list[str], settled: list[str], made: list[Any], *choice: Any) -> Updates:
        items = lists.read(text)
        answered = [items[one.photo]["image"] for one in _find_strangers(items, added, settled, choice)[:1]]
        return draw(text, added, [*settled, *answered], made, *choice)

    def undo(text: str, settled: list[str], made: list[Any]) -> Updates:
        items = lists.read(text)
        number = _answered_photo(items, made)
        if number is None:
            return {part.made: []}
        back = lists.change(items, number, identity=made[1])
        asked_again = [image for image in settled if image != made[0]]
        return {photos.text: lists.write(back), part.settled: asked_again, part.made: []}

    drawn = [part.settled, *part.outputs]
    events.on(photos.text.change, draw, [*state, *face], drawn, keep_line=True)
    events.on(part.other.click, other, [*state, *face], [photos.text, photos.selected, part.made, *drawn])
    events.on(part.same.click, same, [*state, *face], drawn)
    undone = [photos.text, part.settled, part.made]
    events.on(part.undo.click, undo, undone, undone)


def _find_strangers(items: list[Item], added: list[str], settled: list[str], choice: Any) -> list[Stranger]:
    """The added photos that show somebody else, as far as that is not settled."""
    asked = {n for n, item in enumerate(items) if item.get("image") in added and item["image"] not in settled}
    if not asked or len(items) < 2:
        return []
    from dp_adapter.session.photos.strangers import strangers

    session = shared_session.session()
    return strangers(session.photos, session.encoders.yunet, items, read_face_choice(choice), asked)


def _draw(part: StrangersQuestion, items: list[Item], found: list[Stranger], made: list[Any]) -> Updates:
    one = next(iter(found), None)
    number = _answered_photo(items, made)
    answer = "" if number is None else _describe_answer(number, items[number])
    instead = None if one is None else one.instead
    return {
        part.line: status_html([answer, "" if one is None else one.words], "note" if one is None else "warning"),
        part.row: gr.update(visible=one is not None),
        part.other: gr.update(
            value="Make it person 2" if instead is None else f"Make it {naming.person(instead)}",
            visible=instead is not None,
        ),
        part.undo: gr.update(visible=number is not None),
    }


def _describe_answer(number: int, item: Item) -> str:
    return f"{naming.capitalise(naming.photo(number))} is {naming.person(item.get('identity', 0))} now."


def _answered_photo(items: list[Item], made: list[Any]) -> int | None:
    """The photo that the last answer changed, while that still holds."""
    places = (number for number, item in enumerate(items) if made and item.get("image") == made[0])
    return next((number for number in places if items[number].get("identity", 0) != made[1]), None)
