"""Errors that say that memory ran out."""

from __future__ import annotations


def lacks_memory(error: Exception) -> bool:
    """Whether there was not enough memory, on whichever device: torch has no one type for that."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words
