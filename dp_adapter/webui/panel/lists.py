"""The lists in the panel's hidden text boxes: photos and regions as plain objects, and what can be done to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from dp_adapter.errors import SettingsError
from dp_adapter.settings import Reference, Region
from dp_adapter.settings.nested_records import encode

Item = dict[str, Any]
MAX_ITEMS = 32


def read(text: object) -> list[Item]:
    """The items of a hidden text box; what is no list of objects counts as empty, as after a foreign paste."""
    try:
        items: Any = json.loads(text) if isinstance(text, str) and text.strip() else []
    except (ValueError, RecursionError):
        return []
    listed = cast("list[Any]", items) if isinstance(items, list) else []
    return [cast("Item", item) for item in listed if isinstance(item, dict)]


def write(items: list[Item]) -> str:
    return json.dumps(items, ensure_ascii=False) if items else ""


def new_photo(image: str, name: str) -> Item:
    """A new photo at its defaults; ``name`` is for display only."""
    return {**encode(Reference(image=image)), "name": name}


def new_region(person: int = 0) -> Item:
    """A new region at its defaults."""
    return encode(Region(identity=person))


def persons_in(photos: list[Item]) -> list[int]:
    """Who is in the photos, in order."""
    return sorted({person for item in photos if isinstance(person := item.get("identity", 0), int)})


def persons_without_region(regions: list[Item], persons: Sequence[int]) -> list[int]:
    """Persons who have no region, in order; a subtracted one gives nobody a place."""
    placed = {item.get("identity", 0) for item in regions if item.get("op") != "subtract"}
    return [person for person in persons if person not in placed]


def next_person(regions: list[Item], selected: int, persons: Sequence[int]) -> int:
    """Whose a new region is: of several persons the first without one, else the chosen region's."""
    if len(persons) > 1 and (free := persons_without_region(regions, persons)):
        return free[0]
    return regions[selected].get("identity", 0) if 0 <= selected < len(regions) else 0


def with_kind(item: Item, kind: str) -> Item:
    """A region with another kind; a box is there from the start, about where a portrait's head is."""
    box = item.get("box") or {"x0": 0.25, "y0": 0.1, "x1": 0.75, "y1": 0.6}
    return {**item, "kind": kind, **({"box": box} if kind == "box" else {})}


def append(items: list[Item], new: list[Item], noun: str) -> list[Item]:
    """Raises SettingsError when the list would be too long."""
    if len(items) + len(new) > MAX_ITEMS:
        raise SettingsError(
            "", f"{len(items) + len(new)} {noun}s are too many; {MAX_ITEMS} is the most", "Remove some."
        )
    return [*items, *new]


def clamp(items: list[Item], index: int) -> int:
    """The nearest index of an item; -1 when there is none."""
    return max(-1 if not items else 0, min(index, len(items) - 1))


def move(items: list[Item], index: int, by: int) -> tuple[list[Item], int]:
    """One item moved earlier or later, and its new index."""
    to = index + by
    if not (0 <= index < len(items) and 0 <= to < len(items)):
        return items, index
    rest = [item for i, item in enumerate(items) if i != index]
    return [*rest[:to], items[index], *rest[to:]], to


def remove(items: list[Item], index: int) -> tuple[list[Item], int]:
    """All but one item, and the index to select next."""
    rest = [item for i, item in enumerate(items) if i != index]
    return rest, clamp(rest, index)


def change(items: list[Item], index: int, **fields: Any) -> list[Item]:
    """One item with some fields replaced."""
    return [{**item, **fields} if i == index else item for i, item in enumerate(items)]
