"""Where the words for a person stand in a prompt's tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CHUNK = 77  # tokens of a text encoder's input, start and end included

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]

_FACE = ("face", "faces", "head", "heads")
_PICTURE = ("portrait", "portraits", "headshot", "headshots", "selfie", "selfies")  # a face fills it
PERSON = (
    "man", "men", "woman", "women", "person", "persons", "people", "girl", "girls", "boy", "boys", "lady", "ladies",
    "gentleman", "gentlemen", "guy", "guys", "child", "children", "kid", "kids", "baby", "babies", "teenager",
    "teenagers",
)  # fmt: skip
_SINGLE = frozenset(
    {"man", "woman", "person", "girl", "boy", "lady", "gentleman", "guy", "child", "kid", "baby", "teenager"}
)
_NETWORKS = re.compile("<[^>]*>")  # the WebUIs' <lora:NAME:1>
DEFAULT = _FACE + _PICTURE + PERSON


@dataclass(frozen=True)
class InText:
    """Person words of one text.

    Attributes:
        positions: of their tokens in the text's context; empty where there are none, or none that could be told.
        head: whether they mean no more than a head, or a picture full of it.
    """

    positions: tuple[int, ...] = ()
    head: bool = False


@dataclass(frozen=True)
class FoundWords:
    """Person words of a batch's prompts.

    Attributes:
        texts: per picture its texts, of which AND joins several.
    """

    texts: tuple[tuple[InText, ...], ...]

    @property
    def tokens(self) -> list[list[tuple[int, ...]]]:
        """Per picture and text, the positions."""
        return [[text.positions for text in texts] for texts in self.texts]

    @property
    def prompts(self) -> int:
        """How many texts AND joins, as far as all pictures have them: what ``sampler_rows`` asks for."""
        return min(map(len, self.texts), default=1)

    def head(self, picture: int) -> bool:
        """Whether a picture's words mean a head; False is a body."""
        speaking = [text for text in self.texts[picture] if text.positions]
        return bool(speaking) and all(text.head for text in speaking)


def single_persons(prompt: str) -> tuple[str, ...]:
    """The words for a single person in a prompt, in its order; "two women" are nobody's."""
    return tuple(word for word in re.findall("[a-z]+", _NETWORKS.sub(" ", prompt.lower())) if word in _SINGLE)


def in_text(chunks: Sequence[Sequence[int]], tokenize: Tokenize, words: str = "") -> InText:
    """The person words of one text. Words for a face or head are taken alone, since they say best where it is.

    Args:
        chunks: the text's tokens as the encoder gets them, 77 each.
        tokenize: texts to tokens, without start and end, as the text's own were made.
        words: the user's, with commas between; empty: ``DEFAULT``.
    """
    wanted = [word.strip().lower() for word in re.split("[,\n]", words) if word.strip()] or list(DEFAULT)
    tokens = [one for chunk in chunks for one in chunk]
    ids = zip(wanted, tokenize(wanted), strict=True)
    found = {word: places for word, one in ids if (places := _places(tokens, list(one)))}
    heads = [places for word, places in found.items() if word in _FACE]
    head = bool(heads) or any(word in _PICTURE for word in found)
    return InText(tuple(sorted({place for places in heads or found.values() for place in places})), head)


def _places(tokens: Sequence[int], word: Sequence[int]) -> list[int]:
    """Positions of all tokens of a word, wherever it stands."""
    length = len(word)
    starts = [i for i in range(len(tokens) - length + 1) if length and list(tokens[i : i + length]) == list(word)]
    return [start + i for start in starts for i in range(length)]
