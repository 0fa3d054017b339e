"""Binds events to changes of a list in a hidden text box, and of its chosen item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dp_adapter.webui.panel import lists
from dp_adapter.webui.panel.handlers import EventBinder, Updates
from dp_adapter.webui.panel.lists import Item

Rearrange = Callable[[list[Item], int], tuple[list[Item], int]]
Amend = Callable[[Item, Any], Item]


@dataclass(frozen=True)
class ListEditing:
    """One list.

    Attributes:
        text: the hidden text box; drawing the list follows from its change.
        selected: index of the chosen item, -1 for none.
        clears: a component to be emptied when items come, go or move.
    """

    events: EventBinder
    text: Any
    selected: Any
    clears: Any | None = None

    @property
    def state(self) -> list[Any]:
        return [self.text, self.selected]

    def rearrange(self, text: str, selected: int, change: Rearrange) -> Updates:
        """List and selection after a change; nothing when it changes nothing."""
        items = lists.read(text)
        new, index = change(items, selected)
        if new == items:
            return {}
        closed: Updates = {} if self.clears is None else {self.clears: ""}
        return {self.text: lists.write(new), self.selected: index, **closed}

    def replace_fields(self, text: str, selected: int, fields: Item) -> Updates:
        """The list with some fields of the chosen item replaced."""
        items = lists.read(text)
        new = lists.change(items, selected, **fields)
        return {self.text: lists.write(new)} if new != items else {}

    def on_click(self, event: Any, change: Rearrange) -> None:
        def run(text: str, selected: int) -> Updates:
            return self.rearrange(text, selected, change)

        outputs = self.state if self.clears is None else [*self.state, self.clears]
        self.events.on(event, run, self.state, outputs)

    def on_input(self, component: Any, amend: Amend, *, event: Any = None, also: Sequence[Any] = ()) -> None:
        """Takes a widget's value into the chosen item.

        Args:
            amend: the fields to replace, by the item and the value.
            event: another than the widget's input.
            also: components that are emptied afterwards.
        """

        def run(text: str, selected: int, value: Any) -> Updates:
            items = lists.read(text)
            if not 0 <= selected < len(items):
                return {}
            return {**self.replace_fields(text, selected, amend(items[selected], value)), **dict.fromkeys(also)}

        bound = component.input if event is None else event
        self.events.on(bound, run, [*self.state, component], [self.text, *also])
