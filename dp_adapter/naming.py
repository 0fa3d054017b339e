"""How people read which person, photo, face or region is meant: counted from 1. Requests and JSON count from 0.

Whoever writes a sentence takes the number from here, so that nothing has to be put right afterwards. Names that come
from files and requests may hold anything: ``printable`` and ``word`` make of them what every screen and encoding takes.
"""

from __future__ import annotations

import re
import unicodedata

_SHOWN = 80  # characters of a value
_SENTENCE = 2000
_LONG_WORD = re.compile(r"\S{200,}")  # longer than a path that somebody has to find


def person(number: int) -> str:
    return f"person {number + 1}"


def photo(number: int) -> str:
    return f"photo {number + 1}"


def face(number: int) -> str:
    """Of a picture, from the left."""
    return f"face {number + 1}"


def region(number: int) -> str:
    return f"region {number + 1}"


def capitalise(text: str) -> str:
    """As a sentence begins."""
    return text[:1].upper() + text[1:]


def printable(text: str) -> str:
    """The text with escapes, as in Python's source, for what cannot be encoded or seen; line breaks stay.

    These are half characters (file names that are no UTF-8 have them, too), control characters, and marks that turn
    the direction of writing.
    """
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    shown = character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"
    return character if shown else character.encode("unicode_escape").decode()


def shorten(text: str, most: int) -> str:
    """At most so many characters of a text: of a long one its beginning and its end."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 1]}…{text[len(text) - end :]}"


def first_line(error: BaseException, most: int = 200) -> str:
    """The beginning of what an error says; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return shorten(lines[0].strip(), most) if lines else type(error).__name__


def word(text: str) -> str:
    """A sentence that shows what came from files and requests, for every screen and every encoding.

    A value in it is cut where the sentence is made; what was not is cut here, and so is the whole.
    """
    short = _LONG_WORD.sub(lambda found: shorten(found[0], _SHOWN), printable(text))
    return shorten(short, _SENTENCE)
