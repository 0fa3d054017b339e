"""A bounded cache: the entry that was not used for longest goes first. Safe among threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """At most ``limit`` values by key, of at most ``total`` bytes together; the newest is kept whatever its size."""

    def __init__(self, limit: int, total: int | None = None) -> None:
        self._limit, self._total = limit, total
        self._lock = RLock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}

    def get(self, key: Hashable, make: Callable[[], Value], size: int | Callable[[Value], int] = 0) -> Value:
        """The value of ``key``, made now if it is not there; an exception in ``make`` stores nothing.

        Args:
            size: of the value in bytes, or what tells it of the value, for a cache with a total.

        Threads that ask at the same time may each make it; the first one's is kept.
        """
        with self._lock:
            known = key in self._values
        made = None if known else [make()]  # not under the lock: it may take seconds, and ask other caches
        with self._lock:
            if key not in self._values:
                self._values[key] = made[0] if made else make()  # made by another thread, and gone since
                self._sizes[key] = size(self._values[key]) if callable(size) else size
            value = self._values[key]
            self._values.move_to_end(key)
            while len(self._values) > self._limit or (len(self._values) > 1 and self._is_too_large()):
                gone, _ = self._values.popitem(last=False)
                del self._sizes[gone]
        return value

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
            self._sizes.clear()

    def _is_too_large(self) -> bool:
        return self._total is not None and sum(self._sizes.values()) > self._total

    def __len__(self) -> int:
        return len(self._values)
