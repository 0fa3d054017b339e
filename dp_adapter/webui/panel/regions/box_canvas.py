"""Boxes over a picture, to be drawn, moved and resized. Dragging is done in the browser (javascript/dp_adapter.js),
what a drag means is decided here.

The picture is the style's background, so that boxes can be drawn anew without sending it again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dp_adapter.errors import SettingsError
from dp_adapter.webui.panel import lists
from dp_adapter.webui.panel.lists import Item
from dp_adapter.webui.panel.regions.mask_brush import data_url
from dp_adapter.webui.panel.regions.region_drawing import COLOURS

if TYPE_CHECKING:
    from PIL.Image import Image

SIDES = ("x0", "y0", "x1", "y1")
_EDGES = ("n", "e", "s", "w", "nw", "ne", "se", "sw")
_HIGH = 32  # em, at most
_HINT = (
    "Drag on the picture for a new box, a box to move it, its edges to resize it. "
    "With Shift, a new box can begin inside another one."
)


@dataclass(frozen=True)
class Drag:
    """What was done on the layout.

    Attributes:
        index: of the region whose box was dragged or clicked; -1 for a new one.
        box: its sides after that, in fractions of the picture, in the order of ``SIDES``.
    """

    index: int
    box: tuple[float, ...]


def style_with_picture(picture: Image, elem_id: str) -> str:
    """HTML of a style that shows the picture under the boxes inside the element."""
    ratio = picture.width / picture.height
    return (
        f"<style>#{elem_id} .dp-adapter-layout {{ aspect-ratio: {ratio:.4f}; width: min(100%, {_HIGH * ratio:.2f}em); "
        f"background-image: url({data_url(picture.convert('RGB'), 'JPEG')}); }}</style>"
    )


def draw_boxes(items: list[Item], chosen: int, target: str) -> str:
    """HTML of the boxes among the regions, small ones above large ones.

    Args:
        target: element id of the text box that gets every drag.
    """
    boxes = [index for index, item in enumerate(items) if item.get("kind") == "box"]
    boxes.sort(key=lambda index: -_area_of(_box_of(items[index])))
    shown = "".join(_draw_box(index, items[index], index == chosen) for index in boxes)
    return f'<div class="dp-adapter-layout" data-target="{target}">{shown}</div><p class="dp-adapter-hint">{_HINT}</p>'


def read_drag(text: str) -> Drag:
    """Raises SettingsError: the browser sent something else."""
    try:
        sent: Any = json.loads(text)
        x0, y0, x1, y1 = (min(max(float(side), 0.0), 1.0) for side in sent["box"])
        return Drag(int(sent["index"]), (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError("regions", f"what was drawn could not be read ({error})", "Draw it again.") from error


def apply_drag(items: list[Item], selected: int, drag: Drag, persons: Sequence[int] = ()) -> tuple[list[Item], int]:
    """The regions after a drag, and which is chosen then. A click chooses; what has no area adds nothing.

    Args:
        persons: who is in the photos. A new box is that of the first who has no region yet.

    Raises:
        SettingsError: there are too many regions.
    """
    box = {side: round(value, 2) for side, value in zip(SIDES, drag.box, strict=True)}
    has_area = box["x0"] < box["x1"] and box["y0"] < box["y1"]
    if not 0 <= drag.index < len(items):
        if not has_area:
            return items, selected
        person = lists.next_person(items, selected, persons)
        new = {**lists.new_region(), "kind": "box", "box": box, "identity": person}
        return lists.append(items, [new], "region"), len(items)
    if drag.box == _box_of(items[drag.index]) or not has_area:
        return items, drag.index
    return lists.change(items, drag.index, box=box), drag.index


def _box_of(item: Item) -> tuple[float, ...]:
    """The sides as far as they are numbers; what was pasted may be anything."""
    given = item.get("box")
    box = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    sides = zip(SIDES, (0.0, 0.0, 1.0, 1.0), strict=True)
    return tuple(float(box[side]) if isinstance(box.get(side), int | float) else usual for side, usual in sides)


def _area_of(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _draw_box(index: int, item: Item, chosen: bool) -> str:
    x0, y0, x1, y1 = _box_of(item)
    person = item.get("identity", 0)
    colour = COLOURS[person % len(COLOURS)] if isinstance(person, int) else COLOURS[0]
    subtracted = item.get("op") == "subtract"
    kinds = ["dp-adapter-box", *["dp-adapter-chosen"] * chosen, *["dp-adapter-subtracted"] * subtracted]
    place = f"left:{x0:.2%};top:{y0:.2%};width:{x1 - x0:.2%};height:{y1 - y0:.2%};--colour:rgb{colour}"
    edges = "".join(f'<i data-edge="{edge}"></i>' for edge in _EDGES)
    number = f"{'− ' * subtracted}{index + 1}"
    sides = json.dumps((x0, y0, x1, y1))
    return (
        f'<div class="{" ".join(kinds)}" data-index="{index}" data-box="{sides}" style="{place}">'
        f"<b>{number}</b>{edges}</div>"
    )
