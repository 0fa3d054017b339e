"""Words into prompts: in the WebUIs' own syntax, or as one prompt for each stage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dp_adapter.modes.mode import ModeWords
from dp_adapter.settings.messages import tidy

_AND = re.compile(r"\bAND\b")  # modules/prompt_parser.py of the WebUIs, re_AND
# Spaces before something are looked at from the first of them on alone, or a thousand would take a million steps.
_WEIGHT = re.compile(r"(?<!\s)\s*:\s*[-+]?(?:\d+\.?|\d*\.\d+)\s*$")  # of a part of AND; there re_weight
# A prompt goes on behind these in another chunk of tokens or another region: the words go before the first one.
_BORDER = re.compile(r"(?<!\s)\s*\b(?:BREAK|ADDCOMM|ADDBASE|ADDCOL|ADDROW)\b")
_TAG = re.compile(r"<[^<>]*>")


@dataclass(frozen=True)
class PromptStage:
    """The prompts from a progress on."""

    start: float
    prompt: str
    negative_prompt: str


def add_words(prompt: str, negative_prompt: str, words: Sequence[ModeWords]) -> tuple[str, str]:
    """Both prompts with a mode's words, as the WebUIs read them; what is there already is not added again.

    Words of some stages are written as prompt editing, ``[word:0.1]`` and ``[word::0.8]``. Every part of ``AND`` gets
    the words, before its weight.
    """
    parts = _AND.split(prompt)
    added = "AND".join(_add_to_part(part, words) if part.strip() or len(parts) == 1 else part for part in parts)
    return added, _append(negative_prompt, _prompt_edits(negative_prompt, words, negative=True))


def split_stages(prompt: str, negative_prompt: str, words: Sequence[ModeWords]) -> tuple[PromptStage, ...]:
    """The prompts of every stage, in order, the first from 0 on; one stage where the words never change."""
    starts = sorted({0.0, *(one.start for one in words), *(one.end for one in words if one.end < 1)})
    found: list[PromptStage] = []
    for start in starts:
        now = [one for one in words if one.start <= start and (start < one.end or one.end == 1)]
        plain = [_add_plainly(text, now, negative) for text, negative in ((prompt, False), (negative_prompt, True))]
        if not found or (found[-1].prompt, found[-1].negative_prompt) != (plain[0], plain[1]):
            found.append(PromptStage(start, plain[0], plain[1]))
    return tuple(found)


def _add_plainly(prompt: str, words: Sequence[ModeWords], negative: bool) -> str:
    return _append(prompt, [phrase for phrase, _ in _missing_phrases(prompt, words, negative)])


def _add_to_part(part: str, words: Sequence[ModeWords]) -> str:
    """One part of AND with the words before its weight, its first border, and a comment in its last line."""
    weight, border = _WEIGHT.search(part), _BORDER.search(part)
    end = min([len(part.rstrip()), *(found.start() for found in (weight, border) if found)])
    comment = part.find("#", part.rfind("\n", 0, end) + 1, end)  # the WebUIs take it out, up to the end of its line
    end = len(part[: end if comment < 0 else comment].rstrip())
    return _append(part[:end], _prompt_edits(part, words, negative=False)) + part[end:]


def _prompt_edits(prompt: str, words: Sequence[ModeWords], negative: bool) -> list[str]:
    """What is missing, phrases of one stage together."""
    staged: list[tuple[float, float, list[str]]] = []
    for phrase, one in _missing_phrases(prompt, words, negative):
        if not staged or staged[-1][:2] != (one.start, one.end):
            staged.append((one.start, one.end, []))
        staged[-1][2].append(phrase)
    return [_prompt_edit(", ".join(phrases), start, end) for start, end, phrases in staged]


def _missing_phrases(prompt: str, words: Sequence[ModeWords], negative: bool) -> Iterator[tuple[str, ModeWords]]:
    """Phrases that the prompt does not hold yet, each once."""
    seen = _TAG.sub(" ", prompt)
    for one in words:
        for phrase in one.text.split(",") if one.negative == negative else ():
            plain = phrase.strip()
            if plain and not _contains(seen, plain):
                seen += f", {plain}"
                yield plain, one


def _contains(prompt: str, phrase: str) -> bool:
    pattern = r"[\s_]+".join(map(re.escape, phrase.split()))
    return re.search(rf"(?<!\w){pattern}(?!\w)", prompt, re.IGNORECASE) is not None


def _prompt_edit(text: str, start: float, end: float) -> str:
    """Prompt editing: ``[a:0.1]`` from 0.1 on, ``[a::0.8]`` up to 0.8."""
    until = text if end == 1 else f"[{text}::{tidy(end)}]"
    return until if start == 0 else f"[{until}:{tidy(start)}]"


def _append(prompt: str, phrases: Sequence[str]) -> str:
    if not phrases:
        return prompt
    head = prompt.rstrip()
    joint = "" if not head else " " if head.endswith(",") else ", "
    return f"{head}{joint}{', '.join(phrases)}"
