"""The persons in prompts: which word is whose, and the prompt in which it stands as often as it has to.

A person has words of their own ("woman in red"), of which the person word counts (woman), or else the last one; or
none: then the person words of the prompt go round in order, the first is the first person's. Words that the prompt
marks come first: whatever stands before a trigger, and what already stands several times in a row. ``AND`` joins
several texts: each is counted anew where one of them has words for all, else on from the one before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dp_adapter.hosts.prompts.person_words import PERSON
from dp_adapter.hosts.prompts.trigger_words import without_triggers

if TYPE_CHECKING:
    from dp_adapter.core.text.text_side import PromptPerson

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
    for text in re.split("[,\n]", words.lower()):
        if parts := text.split():
            at = next((i for i, part in enumerate(parts) if part in PERSON), len(parts) - 1)
            found.append(Phrase(" ".join(parts[:at]), parts[at], " ".join(parts[at + 1 :])))
    return found


@dataclass(frozen=True)
class WordPosition:
    """A word somewhere, and how often it stands there in a row.

    Attributes:
        start, end: of all of it, in characters or tokens; steps: the end of each repetition.
        triggered: whether a trigger stood behind it.
    """

    start: int
    end: int
    steps: tuple[int, ...]
    triggered: bool = False

    @property
    def marked(self) -> bool:
        """Whether the prompt says by itself that a person acts through it."""
        return self.triggered or len(self.steps) > 1


def shared_out(
    parts: Sequence[Sequence[WordPosition]], own: Sequence[Mapping[int, WordPosition]], people: Sequence[PromptPerson]
) -> list[dict[int, WordPosition]]:
    """Whose each place is, per part of AND.

    Args:
        parts: places of person words, and of words that are marked; own: per person with words of their own, where
            these stand.
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
        first = sorted(places, key=lambda place: not place.marked)[: len(left)]
        for place in sorted(first, key=lambda place: place.start):
            whose[left.pop(0)] = place
    return found


def own_places(found: Mapping[int, Sequence[WordPosition]]) -> dict[int, WordPosition]:
    """Which of the places of each person's own words is theirs: one that is marked, else the first; nobody else's.

    Args:
        found: by person, in the order of the words that were tried.
    """
    whose: dict[int, WordPosition] = {}
    for person, places in found.items():
        free = [place for place in places if not any(_overlap(place, other) for other in whose.values())]
        if ordered := sorted(free or places, key=lambda place: not place.marked):
            whose[person] = ordered[0]
    return whose


def _overlap(one: WordPosition, other: WordPosition) -> bool:
    return one.start < other.end and other.start < one.end


def repeated(prompt: str, people: Sequence[PromptPerson], *, webui: bool = True) -> str:
    """A prompt in which each person's word stands as often as it has to, without the trigger behind it.

    What is there already is not added again.

    Args:
        webui: whether ``AND`` and ``#`` mean something, as in the WebUIs.
    """
    joined = re.split(f"({_AND.pattern})", prompt) if webui else [prompt]
    texts, marks = _unmarked(joined[::2], people, webui)
    places = _in_texts(texts, marks, people, webui)
    times = {one.person: one.tokens for one in people}
    joined[::2] = [_repeat_words(text, whose, times) for text, whose in zip(texts, places, strict=True)]
    return "".join(joined)


def words_in(prompt: str, people: Sequence[PromptPerson]) -> dict[int, str]:
    """The word of each person in a WebUI's prompt, as it is written there; none for those who have none."""
    found: dict[int, str] = {}
    texts = _AND.split(prompt)
    for text, whose in zip(texts, _in_texts(texts, [[] for _ in texts], people, True), strict=True):
        for person, place in whose.items():
            found.setdefault(person, text[place.start : place.steps[0]])
    return found


def name_persons(
    prompts: Sequence[str], people: Sequence[PromptPerson], *, webui: bool = True
) -> tuple[PromptPerson, ...]:
    """The persons with the words that triggers in these prompts say are theirs, where nothing else would say so.

    For whoever reads the prompts when ``repeated`` has taken the triggers out; the same persons where that is enough.
    """
    words: dict[int, dict[str, None]] = {one.person: {} for one in people}
    lost: set[int] = set()
    for prompt in prompts:
        texts, marks = _unmarked(_AND.split(prompt) if webui else [prompt], people, webui)
        said = _in_texts(texts, marks, people, webui)
        times = {one.person: one.tokens for one in people}
        later = [_repeat_words(text, whose, times) for text, whose in zip(texts, said, strict=True)]
        read = _in_texts(later, [[] for _ in later], people, webui)
        for text, whose, plain in zip(texts, said, read, strict=True):
            starts = _starts(text, whose, times)
            for person, place in whose.items():
                words[person][_find_distinguishing_words(text, place, webui)] = None
                lost |= {person} if person not in plain or plain[person].start != starts[person] else set()
    return tuple(
        replace(one, words=", ".join(filter(None, [one.words, *words[one.person]]))) if one.person in lost else one
        for one in people
    )


def _unmarked(
    texts: Sequence[str], people: Sequence[PromptPerson], webui: bool
) -> tuple[list[str], list[list[WordPosition]]]:
    """Texts without triggers, and the places of the words that had one behind them."""
    trigger = next((one.trigger for one in people if one.trigger), "")  # of the one checkpoint that speaks
    if not trigger:
        return list(texts), [[] for _ in texts]
    found = [without_triggers(text, _plain(text) if webui else text, trigger) for text in texts]
    marks = [[_run_at(_plain(text) if webui else text, *one) for one in places] for text, places in found]
    return [text for text, _ in found], marks


def _run_at(text: str, start: int, end: int) -> WordPosition:
    """The place of a marked word, with what stands of it in a row."""
    runs = _written(text, Phrase("", text[start:end], ""))
    around = next((run for run in runs if run.start <= start and end <= run.end), WordPosition(start, end, (end,)))
    return replace(around, triggered=True)


def _find_distinguishing_words(text: str, place: WordPosition, webui: bool) -> str:
    """The word at a place as a person's own words, with as many of those before it as tell it from an earlier one."""
    plain = _plain(text) if webui else text
    word = plain[place.start : place.steps[0]].lower()
    before = re.search(r"(?:[^\W\d_]+[ ]+)*$", plain[: place.start])
    further = before[0].lower().split() if before else []
    told = word
    while further and _written(plain, phrases_of(told)[0])[0].start != place.start:
        told = f"{further.pop()} {told}"
        if phrases_of(told)[0].word != word:  # another person word has come in, which would count
            return word
    return told


def _in_texts(
    texts: Sequence[str], marks: Sequence[Sequence[WordPosition]], people: Sequence[PromptPerson], webui: bool
) -> list[dict[int, WordPosition]]:
    parts: list[list[WordPosition]] = []
    own: list[dict[int, WordPosition]] = []
    for text, marked in zip(texts, marks, strict=True):
        plain = _plain(text) if webui else text
        written = [place for word in PERSON for place in _written(plain, Phrase("", word, ""))]
        parts.append([*marked, *(p for p in written if not any(_overlap(p, mark) for mark in marked))])
        tried = {one.person: [p for phrase in phrases_of(one.words) for p in _written(plain, phrase)] for one in people}
        own.append(own_places(tried))
    missing = [one for one in people if one.trigger and one.words.strip() and not any(one.person in o for o in own)]
    for whose, marked in zip(own, marks, strict=True):
        free = [mark for mark in marked if not any(_overlap(mark, other) for other in whose.values())]
        whose.update({one.person: mark for one, mark in zip(missing, free, strict=False)})
    return shared_out(parts, own, people)


def _plain(text: str) -> str:
    """The same length, with tags and comments hidden, which the text encoder does not get."""
    hidden = _HIDDEN.sub(lambda found: "\0" * len(found[0]), text)
    return re.sub(r"#[^\n]*", lambda found: "\0" * len(found[0]), hidden)


def _written(text: str, phrase: Phrase) -> list[WordPosition]:
    """Where a phrase is written, its word any number of times."""
    before, after = (r"[\s_]+".join(map(re.escape, side.split())) for side in (phrase.before, phrase.after))
    word = re.escape(phrase.word)
    # As CLIP's tokenizer divides: letters are a word, and every digit is one.
    run = f"({word}(?:[ ]+{word})*)"
    pattern = rf"(?<![^\W\d_]){before and before + '[ _]+'}{run}{after and '[ _]+' + after}(?![^\W\d_])"
    return [
        WordPosition(
            found.start(1), found.end(1), tuple(one.end() + found.start(1) for one in re.finditer(word, found[1], re.I))
        )
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]


def _repeat_words(text: str, whose: Mapping[int, WordPosition], times: Mapping[int, int]) -> str:
    """The text with each word as often as it has to stand."""
    for person, place in sorted(whose.items(), key=lambda item: -item[1].start):
        text = text[: place.end] + _further(text, place, times[person]) + text[place.end :]
    return text


def _further(text: str, place: WordPosition, times: int) -> str:
    return f" {text[place.start : place.steps[0]]}" * max(0, times - len(place.steps))


def _starts(text: str, whose: Mapping[int, WordPosition], times: Mapping[int, int]) -> dict[int, int]:
    """Where the words stand in what ``_repeat_words`` makes."""
    added = {person: len(_further(text, place, times[person])) for person, place in whose.items()}
    return {
        person: place.start + sum(added[other] for other, before in whose.items() if before.start < place.start)
        for person, place in whose.items()
    }
