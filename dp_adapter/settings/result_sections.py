"""The records of the request that are about finished pictures: the face pass and the report."""

from __future__ import annotations

from dataclasses import dataclass

from dp_adapter.settings.container_types import Nullable
from dp_adapter.settings.field_types import Choice, Flag, Integer, Number
from dp_adapter.settings.fields import Record, setting
from dp_adapter.settings.sections import FRACTION, WEIGHT

MAX_CANDIDATES = 16
RESULT = "DP-Adapter result "
"""Begins the infotext keys of what was measured, not asked for: they are never read back."""


@dataclass(frozen=True)
class FacePass(Record):
    """Making each finished face anew, enlarged, as a detailer does."""

    use: str = setting(
        "auto",
        Choice(("auto", "on", "off")),
        "Face pass",
        "Makes each face of the finished picture anew, enlarged; auto: where the mode wants it and ADetailer is off.",
    )
    strength: float = setting(
        0.4, Number(0.05, 1.0, 0.05), "Face pass strength", "Denoising strength of the face pass."
    )
    weight: float = setting(1.0, WEIGHT, "Face pass weight", "Strength of the identity pathway in the face pass.")
    size: int | None = setting(
        None,
        Nullable(Integer(128, 1024, step=64)),
        "Face pass size",
        "Side in pixels of the square that a face is enlarged to; null: what the base model was trained on, at most "
        "the picture's longer side.",
    )


@dataclass(frozen=True)
class Report(Record):
    """What is handed back besides the picture, and what is asked of it; nothing by default."""

    enabled: bool = setting(
        False, Flag(), "Report", "Measure the likeness of each picture to the photos and write it to its parameters."
    )
    drift: bool = setting(
        False,
        Flag(),
        "Measure drift",
        "Also make each picture without the identity and write how far it differs outside the face; doubles the time.",
    )
    masks: bool = setting(False, Flag(), "Mask pictures", "Hand back the regions that were used, as pictures.")
    overlay: bool = setting(
        False, Flag(), "Regions in live preview", "Draw the regions over the live preview while the picture forms."
    )
    best_of: int = setting(
        1,
        Integer(1, MAX_CANDIDATES),
        "Best of",
        "Make up to this many candidates of each picture and keep the one most like the photos.",
    )
    least: float | None = setting(
        None,
        Nullable(FRACTION),
        "Least likeness",
        "Likeness that is good enough: no further candidates are made; null: there is no such limit.",
    )
    below: str = setting(
        "keep",
        Choice(("keep", "skip")),
        "Below the least likeness",
        "What becomes of a picture that is less like the photos than that: keep it, or skip it.",
    )
