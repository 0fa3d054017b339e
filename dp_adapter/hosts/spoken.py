"""The persons in prompts: which word is whose, and the prompt in which it stands as often as it has to.

A person has words of their own ("woman in red"), of which the person word counts (woman), or else the last one; or
none: then the person words of the prompt go round in order, the first is the first person's. ``AND`` joins several
texts: each is counted anew where one of them has words for all, else on from the one before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp_adapter.hosts.person_words import PERSON

if TYPE_CHECKING:
    from dp_adapter.core.text_side import Spoken

_AND = re.compile(r"\bAND\b")  # modules/prompt_parser.py of the WebUIs, re_AND
_HIDDEN = re.compile(r"<[^<>]*>")  # <lora:…> and the like


@dataclass(frozen=True)
class Phrase:
    """A person's words: the one that counts, between the others."""

    before: str
    word: str
    after: str

    def times(self, count: int) -> str:
        return " ".join(filter(None, [self.before, *[self.word] * count, self.after]))


def phrases_of(words: str) -> list[Phrase]:
    """A person's own words, of which commas join several that are tried in order."""
    found: list[Phrase] = []
    for text in words.lower().split(","):
        if parts := text.split():
            at = next((i for i, part in enumerate(parts) if part in PERSON), len(parts) - 1)
            found.append(Phrase(" ".join(parts[:at]), parts[at], " ".join(parts[at + 1 :])))
    return found


@dataclass(frozen=True)
class Place:
    """A word somewhere, and how often it stands there in a row.

    Attributes:
        start, end: of all of it, in characters or tokens; steps: the end of each repetition.
    """

    start: int
    end: int
    steps: tuple[int, ...]


def shared_out(
    parts: Sequence[Sequence[Place]], own: Sequence[Mapping[int, Place]], people: Sequence[Spoken]
) -> list[dict[int, Place]]:
    """Whose each place is, per part of AND.

    Args:
        parts: places of person words; own: per person with words of their own, where these stand.
    """
    unnamed = [one.person for one in people if not phrases_of(one.words)]
    free = [
        sorted((p for p in places if not any(_overlap(p, other) for other in named.values())), key=lambda p: p.start)
        for places, named in zip(parts, own, strict=True)
    ]
    found = [dict(named) for named in own]
    anew = any(len(places) >= len(unnamed) for places in free)
    left = list(unnamed)
    for places, whose in zip(free, found, strict=True):
        left = list(unnamed) if anew else left
        for place in places[: len(left)]:
            whose[left.pop(0)] = place
    return found


def _overlap(one: Place, other: Place) -> bool:
    return one.start < other.end and other.start < one.end


def repeated(prompt: str, people: Sequence[Spoken], *, webui: bool = True) -> str:
    """A prompt in which each person's word stands as often as it has to, without the trigger behind it.

    What is there already is not added again.

    Args:
        webui: whether ``AND`` and ``#`` mean something, as in the WebUIs.
    """
    parts = re.split(f"({_AND.pattern})", prompt) if webui else [prompt]
    texts = [_without_triggers(text, people) for text in parts[::2]]
    places = _in_texts(texts, people, webui)
    times = {one.person: one.tokens for one in people}
    parts[::2] = [_filled(text, whose, times) for text, whose in zip(texts, places, strict=True)]
    return "".join(parts)


def words_in(prompt: str, people: Sequence[Spoken]) -> dict[int, str]:
    """The word of each person in a WebUI's prompt, as it is written there; none for those who have none."""
    texts = _AND.split(prompt)
    found: dict[int, str] = {}
    for text, whose in zip(texts, _in_texts(texts, people, True), strict=True):
        for person, place in whose.items():
            found.setdefault(person, text[place.start : place.steps[0]])
    return found


def _in_texts(texts: Sequence[str], people: Sequence[Spoken], webui: bool) -> list[dict[int, Place]]:
    plain = [_plain(text) if webui else text for text in texts]
    places = [[place for word in PERSON for place in _written(text, Phrase("", word, ""))] for text in plain]
    own: list[dict[int, Place]] = []
    for text in plain:
        named = ((one.person, _first(_written(text, phrase) for phrase in phrases_of(one.words))) for one in people)
        own.append({person: place for person, place in named if place is not None})
    return shared_out(places, own, people)


def _first(tried: Iterator[list[Place]]) -> Place | None:
    return next((places[0] for places in tried if places), None)


def _plain(text: str) -> str:
    """The same length, with tags and comments hidden, which the text encoder does not get."""
    hidden = _HIDDEN.sub(lambda found: "\0" * len(found[0]), text)
    return re.sub(r"#[^\n]*", lambda found: "\0" * len(found[0]), hidden)


def _written(text: str, phrase: Phrase) -> list[Place]:
    """Where a phrase is written, its word any number of times."""
    before, after = (r"[\s_]+".join(map(re.escape, side.split())) for side in (phrase.before, phrase.after))
    word = re.escape(phrase.word)
    # As CLIP's tokenizer divides: letters are a word, and every digit is one.
    run = f"({word}(?:[ ]+{word})*)"
    pattern = rf"(?<![^\W\d_]){before and before + '[ _]+'}{run}{after and '[ _]+' + after}(?![^\W\d_])"
    return [
        Place(
            found.start(1), found.end(1), tuple(one.end() + found.start(1) for one in re.finditer(word, found[1], re.I))
        )
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]


def _filled(text: str, whose: Mapping[int, Place], times: Mapping[int, int]) -> str:
    """The text with each word as often as it has to stand."""
    for person, place in sorted(whose.items(), key=lambda item: -item[1].start):
        word = text[place.start : place.steps[0]]
        text = text[: place.end] + f" {word}" * max(0, times[person] - len(place.steps)) + text[place.end :]
    return text


def _without_triggers(text: str, people: Sequence[Spoken]) -> str:
    for trigger in {one.trigger for one in people if one.trigger}:
        text = re.sub(rf"(?<=[\w)\]])\s+{re.escape(trigger)}(?!\w)", "", text)
    return text
