"""Kinds made of other kinds: null or a value, lists, factors by site."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from dp_adapter.errors import SettingsError
from dp_adapter.settings.field_types import Kind, Number
from dp_adapter.settings.messages import count, refusal, show, split_list, within


@dataclass(frozen=True)
class Nullable(Kind):
    """A value, or null for an automatic one."""

    item: Kind

    def check(self, value: object) -> object:
        return None if value is None else self.item.check(value)

    def read(self, data: object) -> object:
        return None if data is None else self.item.read(data)

    def write(self, value: Any) -> Any:
        return None if value is None else self.item.write(value)

    def brief(self, value: Any) -> Any:
        return None if value is None else self.item.brief(value)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.item.schema(), {"type": "null"}]}

    def describe(self) -> str:
        return f"{self.item.describe()}, or null"

    def parse(self, text: str) -> Any:
        return None if text.strip() == "null" else self.item.parse(text)

    def format(self, value: Any) -> str:
        return "null" if value is None else self.item.format(value)


@dataclass(frozen=True)
class ListOf(Kind):
    """A list of at most ``max_items`` values of one kind, a tuple in Python. ``noun`` names one item in words."""

    item: Kind
    max_items: int
    noun: str
    unique: bool = False

    def check(self, value: object) -> tuple[object, ...]:
        items = self._items(value)
        self._check_count(items, items[: self.max_items])
        checked: list[object] = []
        for index, item in enumerate(items):
            with within(f"[{index}]"):
                checked.append(self.item.check(item))
        if self.unique and len(set(checked)) < len(checked):
            raise refusal("names one thing twice", "Name each once.", tuple(dict.fromkeys(checked)))
        return tuple(checked)

    def read(self, data: object) -> list[object]:
        values: list[object] = []
        items = self._items(data)
        for index, item in enumerate(items[: self.max_items]):
            with within(f"[{index}]"):
                values.append(self.item.read(item))
        self._check_count(items, values)
        return values

    def _check_count(self, items: list[object], nearest: list[object]) -> None:
        if len(items) > self.max_items:
            problem = f"has {count(len(items), self.noun)}, the maximum is {self.max_items}"
            raise refusal(problem, f"Use at most {self.max_items}.", nearest)

    def _items(self, value: object) -> list[object]:
        if isinstance(value, list | tuple):
            return list(cast("list[object]", value))
        raise refusal(f"{show(value)} is not a list", f"Use a list; each {self.noun} is {self.item.describe()}.")

    def write(self, value: Any) -> list[Any]:
        return [self.item.write(item) for item in value]

    def brief(self, value: Any) -> list[Any]:
        return [self.item.brief(item) for item in value]

    def schema(self) -> dict[str, Any]:
        unique = {"uniqueItems": True} if self.unique else {}
        return {"type": "array", "items": self.item.schema(), "maxItems": self.max_items, **unique}

    def describe(self) -> str:
        return f"a list of at most {count(self.max_items, self.noun)}, each {self.item.describe()}"

    def parse(self, text: str) -> Any:
        """Plain items may be written with commas or line breaks (``init, preview``), anything as JSON."""
        if text.lstrip().startswith("["):
            return super().parse(text)
        try:
            return [self.item.parse(part) for part in split_list(text) if part]
        except SettingsError:
            return text


@dataclass(frozen=True)
class SiteFactors(Kind):
    """Factors by attention site in file order: ``{"3": 0.5}`` in JSON, ``((3, 0.5),)`` in Python, sorted."""

    sites: int
    factor: Number

    def check(self, value: object) -> tuple[tuple[int, float], ...]:
        factors: dict[int, float] = {}
        for key, factor in self._pairs(value):
            with within(f"[{show(key)}]"):
                factors[self._site(key)] = self.factor.check(factor)
        return tuple(sorted(factors.items()))

    def _pairs(self, value: object) -> list[tuple[object, object]]:
        if isinstance(value, Mapping):
            return list(cast("Mapping[object, object]", value).items())
        pairs = cast("list[object]", value) if isinstance(value, list | tuple) else [None]
        if not all(isinstance(pair, tuple) and len(cast("tuple[object, ...]", pair)) == 2 for pair in pairs):
            raise refusal(
                f"{show(cast('object', value))} is not an object of sites and factors", f"Use {self.describe()}."
            )
        return cast("list[tuple[object, object]]", pairs)

    def _site(self, key: object) -> int:
        if isinstance(key, str) and re.fullmatch(r"0|[1-9]\d{0,3}", key, re.ASCII):
            key = int(key)
        if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < self.sites:
            nearest = min(max(key, 0), self.sites - 1) if isinstance(key, int) else 0
            raise refusal(f"there is no such site, only 0 to {self.sites - 1}", f"Use {nearest}.", nearest)
        return key

    def write(self, value: Any) -> dict[str, float]:
        return {str(site): factor for site, factor in value}

    def schema(self) -> dict[str, Any]:
        names = {"enum": [str(site) for site in range(self.sites)]}
        return {"type": "object", "propertyNames": names, "additionalProperties": self.factor.schema()}

    def describe(self) -> str:
        return f'an object like {{"3": 0.5}}: sites 0 to {self.sites - 1}, each with {self.factor.describe()}'
