"""The result of examining one picture: its samples, and what was left out with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
"""A sample as `Sample.to_record` gives it, with an empty person and caption."""

REASONS: Mapping[str, str] = {
    "unreadable": "the file cannot be read as a picture, or is too large",
    "no face": "the detector finds no face",
    "unsure face": "the detector is not sure enough (min_score)",
    "several faces": "more than one face (several)",
    "small face": "the face is too small (min_face)",
    "blurred": "the face is not sharp enough (min_sharpness)",
    "turned away": "the head is turned too far (max_yaw)",
    "tilted": "the head looks up or down too far (max_pitch)",
    "no skin": "the parser sees no face skin where the face is: a drawing, a mask, or not a face",
    "failed": "the work on it failed",
    "same file": "another file has the same content",
    "near duplicate": "nearly the same picture as a better one (near_bits, near_cosine)",
    "few photos": "its person has too few photos (min_photos)",
}
"""Why pictures, or faces of one, are dropped; the order is that of the work."""


@dataclass(frozen=True)
class Drop:
    """One picture, or one face of it, that is left out.

    Attributes:
        reason: one of `REASONS`; detail: the figure or message that decided.
        box: x0, y0, x1, y1 of the face in px of the picture, where there is one.
    """

    reason: str
    detail: str = ""
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class PictureResult:
    """Samples and drops of one picture."""

    records: tuple[Record, ...] = ()
    drops: tuple[Drop, ...] = ()


@dataclass(frozen=True)
class Task:
    """One file to look at: its content, and the sha256 of that."""

    digest: str
    data: bytes
