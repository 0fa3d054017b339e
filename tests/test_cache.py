"""The bounded cache."""

import threading

import pytest

from dp_adapter.cache import Cache


def test_a_value_is_made_once() -> None:
    cache: Cache[list[int]] = Cache(2)
    made: list[int] = []
    first = cache.get("a", lambda: made)
    assert cache.get("a", lambda: [1]) is first is made


def test_the_entry_unused_for_longest_goes_first() -> None:
    cache: Cache[int] = Cache(2)
    for key, value in (("a", 1), ("b", 2), ("a", 0), ("c", 3)):
        cache.get(key, lambda value=value: value)
    assert len(cache) == 2
    assert cache.get("a", lambda: -1) == 1, "it was used after b"
    assert cache.get("b", lambda: -1) == -1, "b had to go"


def test_what_is_too_much_together_goes_too() -> None:
    cache: Cache[str] = Cache(8, total=10)
    for key, size in (("a", 4), ("b", 4), ("a", 4), ("c", 5)):
        cache.get(key, lambda key=key: key, size)
    assert len(cache) == 2
    assert cache.get("a", lambda: "anew", 4) == "a", "it was used after b"
    assert cache.get("c", lambda: "anew", 5) == "c"
    assert cache.get("large", lambda: "large", 11) == "large" and len(cache) == 1
    assert cache.get("large", lambda: "anew", 11) == "large", "the newest stays, whatever its size"
    cache.clear()
    cache.get("b", lambda: "b", 6)
    cache.get("c", lambda: "c", 4)
    assert len(cache) == 2, "what is gone counts no more"


def test_none_is_a_value() -> None:
    cache: Cache[int | None] = Cache(1)
    assert cache.get("a", lambda: None) is None
    assert cache.get("a", lambda: 1) is None


def test_a_failure_stores_nothing_and_costs_no_entry() -> None:
    cache: Cache[int] = Cache(1)
    cache.get("kept", lambda: 1)

    def fail() -> int:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        cache.get("new", fail)
    assert len(cache) == 1
    assert cache.get("kept", lambda: -1) == 1
    assert cache.get("new", lambda: 2) == 2


def test_clear() -> None:
    cache: Cache[int] = Cache(3)
    cache.get(1, lambda: 1)
    cache.clear()
    assert len(cache) == 0
    assert cache.get(1, lambda: 2) == 2


def test_threads_clear_and_ask_at_once() -> None:
    """A panel's handlers run beside a generation, and the host's unload button beside both."""
    cache: Cache[int] = Cache(2)
    wrong: list[BaseException] = []

    def ask(start: int) -> None:
        try:
            for number in range(start, start + 3000):
                assert cache.get(number % 5, lambda number=number: number % 5) == number % 5
                if number % 7 == 0:
                    cache.clear()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(cache) <= 2
