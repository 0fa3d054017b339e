"""Expressions by name: words that describe the face, not only the feeling, and what speaks against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Expression:
    """Words for the prompt and for the negative prompt."""

    words: str
    against: str = "expressionless"


EXPRESSIONS: Mapping[str, Expression] = MappingProxyType(
    {
        "smiling": Expression("smiling, gentle smile, raised cheeks"),
        "laughing": Expression("laughing, open mouth, showing teeth, narrowed eyes"),
        "neutral": Expression("neutral expression, relaxed face, closed mouth", "smile, open mouth"),
        "serious": Expression("serious expression, closed mouth, steady gaze", "smile"),
        "sad": Expression("sad expression, corners of the mouth turned down, raised inner brows", "smile"),
        "crying": Expression("crying, tears on the cheeks, red eyes, trembling mouth", "smile"),
        "angry": Expression("angry expression, lowered brows, glaring eyes, pressed lips", "smile"),
        "shouting": Expression("shouting, wide open mouth, furrowed brows", "closed mouth"),
        "surprised": Expression("surprised expression, wide open eyes, raised brows, open mouth"),
        "afraid": Expression("frightened expression, wide eyes, raised tense brows, parted lips", "smile"),
        "disgusted": Expression("disgusted expression, wrinkled nose, raised upper lip", "smile"),
        "winking": Expression("winking, one eye closed, slight smile"),
        "thoughtful": Expression("thoughtful expression, looking aside, slightly furrowed brows"),
        "sleeping": Expression("sleeping, closed eyes, relaxed face", "open eyes"),
    }
)


def find_expression(text: str) -> Expression:
    """The expression of this name; free words stand for themselves, with nothing against them."""
    plain = text.strip()
    return EXPRESSIONS.get(plain.lower(), Expression(plain, ""))
