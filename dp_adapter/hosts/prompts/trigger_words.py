"""A word that users of a published system write behind the person's ("a man img"), and which word it stands behind.

The official code takes the token before it, whatever that is. In the WebUIs emphasis may lie between or around.
"""

from __future__ import annotations

import re

_WORD = r"([^\W\d_]+|\d)"  # as CLIP's tokenizer divides: letters are a word, and every digit is one
_CLOSED = r"(?:['’]s)?(?:(?:\s*:\s*[\d.]+)?\s*[)\]])*"  # "woman's", "(woman:1.2)", "((woman))"


def without_triggers(text: str, plain: str, trigger: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without its triggers, and where the words stand in it that had one behind them, each as start and end.

    A trigger behind a comma or the like counts only where none is right behind a word; one without any word stays.

    Args:
        plain: the same length, with what the text encoder does not get hidden.
    """
    word = re.escape(trigger)
    # emphasised by itself, as in "woman (img:1.2)", its brackets go with it
    one = rf"(?:[(\[]+\s*{word}(?:\s*:\s*[\d.]+)?\s*[)\]]+|{word}(?!\w))"
    start = rf"(?<![^\W\d_]){_WORD}({_CLOSED})"
    found = list(re.finditer(rf"{start}((?:\s+{one})+)", plain, re.IGNORECASE))
    if not found:  # a word that stands twice already had its trigger
        apart = re.finditer(rf"{start}(\s*[,;.:|/–—-]+\s*{one})", plain, re.IGNORECASE)
        found = [one for one in apart if not plain[: one.start(1)].lower().endswith(f"{one[1].lower()} ")]
    return _cut(text, [(None if _changes(plain, one) else one.span(1), one.span(3)) for one in found])


def _changes(plain: str, found: re.Match[str]) -> bool:
    """Whether the word before a trigger is one of several that take turns, as in "[man:woman:0.5] img"."""
    return plain[found.start(1) - 1 : found.start(1)] == "|" or bool(re.search(r":[\s\d.]*\]", found[2]))


def _cut(text: str, found: list[tuple[tuple[int, int] | None, tuple[int, int]]]) -> tuple[str, list[tuple[int, int]]]:
    """Takes triggers out of a text, given with their words where these are known; the words' places afterwards."""
    kept: list[str] = []
    places: list[tuple[int, int]] = []
    at = gone = 0
    for word, (first, last) in found:
        places += [] if word is None else [(word[0] - gone, word[1] - gone)]
        kept.append(text[at:first])
        at, gone = last, gone + last - first
    return "".join([*kept, text[at:]]), places
