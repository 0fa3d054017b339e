"""Persons who act through a word of the prompt: what the request says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from dp_adapter.core.text.text_side import Lock, PromptPerson, TextIdentity
from dp_adapter.settings import Settings
from dp_adapter.settings.messages import tidy

_LOCKED = {"key": ", its keys locked", "others": ", all other words locked"}


def text_side(settings: Settings, identity: TextIdentity | None, area: float) -> TextIdentity | None:
    """What a person changes in the text's context, as the request wants it.

    Args:
        area: weight of the person's region. Their weight in the identity attention is another one, but 0 switches all
            off.
    """
    if identity is None:
        return None
    lock = identity.lock if settings.text_side.lock == "auto" else cast(Lock, settings.text_side.lock)
    weight = identity.weight * settings.text_side.weight * area if settings.weight else 0.0
    return replace(identity, lock=lock, weight=weight)


def words_of(settings: Settings, number: int) -> str:
    """The words of the prompt that mean a person, of the first of their photos that has any; empty for none."""
    said = (one.words.strip() for one in settings.references if one.identity == number)
    return next(filter(None, said), "")


def spoken_of(settings: Settings, number: int, identity: TextIdentity) -> PromptPerson:
    """How prompts have to speak of a person."""
    words = words_of(settings, number) or identity.word
    return PromptPerson(number, words, identity.tokens, identity.needs_word, identity.trigger, identity.learned)


def in_words(settings: Settings, number: int, identity: TextIdentity | None) -> str:
    """Which word a person acts through, for the explanation; empty for none."""
    if identity is None or identity.weight == 0:
        return ""
    if not identity.needs_word:
        return f"all words of the prompt, weight {tidy(identity.weight)}"
    words = words_of(settings, number) or identity.word
    named = f"'{words}'" if words else "the person word that is theirs"
    times = f", {identity.tokens} times in a row" if identity.tokens > 1 else ""
    learned = ", learned words in its place" if identity.learned is not None else ""
    return f"{named} in the prompt{times}{learned}, weight {tidy(identity.weight)}{_LOCKED.get(identity.lock, '')}"
