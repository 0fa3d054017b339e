"""What a job tells its user below the pictures."""

from __future__ import annotations

from typing import Any

from dp_adapter import hints, naming


class JobComments:
    """The comments of one job, each of which is shown once.

    Args:
        p: the WebUI's processing object.
    """

    def __init__(self, p: Any) -> None:
        self._p = p
        self._notes: dict[str, None] = {}

    def add(self, note: str) -> None:
        note = naming.word(hints.hide_folders(note))
        if note not in self._notes:
            self._notes[note] = None
            self._p.comment(f"DP-Adapter: {note}")

    @property
    def notes(self) -> list[str]:
        """All of them so far, in order."""
        return list(self._notes)
