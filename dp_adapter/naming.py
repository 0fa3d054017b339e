"""How people read which person, photo, face or region is meant: counted from 1. Requests and JSON count from 0.

Whoever writes a sentence takes the number from here, so that nothing has to be put right afterwards.
"""

from __future__ import annotations


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
