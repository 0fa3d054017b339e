"""A weight over the progress of a generation, written ``0.0@0.1, 1.0@0.3, 0.8@1.0``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from dp_adapter.errors import SettingsError
from dp_adapter.settings.field_types import Kind
from dp_adapter.settings.messages import refusal, show, tidy

MAX_WEIGHT = 2.0
MAX_POINTS = 64
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_POINT = re.compile(rf"\s*({_NUMBER})\s*@\s*({_NUMBER})\s*", re.ASCII)


@dataclass(frozen=True)
class Curve:
    """Piecewise linear weight, constant before the first and after the last point; 1 without points.

    Attributes:
        points: (progress, weight), progress in [0, 1] strictly increasing, weight in [0, 2]; at most 64.

    Raises:
        SettingsError: a point is out of range or out of order; ``nearest`` is the text of the nearest valid curve.
    """

    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        points = tuple((_number(progress), _number(weight)) for progress, weight in self.points)
        object.__setattr__(self, "points", points)
        if len(points) > MAX_POINTS:
            hint = f"Use at most {MAX_POINTS}."
            raise SettingsError(
                "curve", f"has {len(points)} points, the maximum is {MAX_POINTS}", hint, _nearest_text(points)
            )
        before = -1.0
        for progress, weight in points:
            wrong = _problem_of(progress, weight, before)
            if wrong:
                nearest = _nearest_text(points)
                raise SettingsError("curve", wrong, f"Use '{nearest}'.", nearest)
            before = progress

    @classmethod
    def parse(cls, text: str) -> Curve:
        """Reads ``weight@progress`` points with commas, semicolons or line breaks between; nothing is the empty curve.

        Raises:
            SettingsError: a point cannot be read, is out of range or out of order.
        """
        points: list[tuple[float, float]] = []
        for part in re.split(r"\s*[,;]\s*|\s*\n\s*", text.strip()) if text.strip() else []:
            match = _POINT.fullmatch(part)
            if match is None:
                hint = "Write weight@progress, as in 0.0@0.1, 1.0@0.3, 0.8@1.0."
                raise SettingsError("curve", f"{show(part.strip())} is not a point", hint, _nearest_text(points))
            points.append((float(match[2]), float(match[1])))
        return cls(tuple(points))

    def __str__(self) -> str:
        return _text(self.points)

    def at(self, progress: float) -> float:
        """The weight at ``progress`` in [0, 1]."""
        if not self.points:
            return 1.0
        if progress <= self.points[0][0]:
            return self.points[0][1]
        for (p0, w0), (p1, w1) in zip(self.points, self.points[1:], strict=False):
            if progress <= p1:
                share = (progress - p0) / (p1 - p0)
                return w0 * (1 - share) + w1 * share
        return self.points[-1][1]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError("curve", f"{show(value)} is not a number", "Give points as pairs (progress, weight).")
    return float(max(min(value, 1e9), -1e9)) if isinstance(value, int) else float(value)


def _problem_of(progress: float, weight: float, before: float) -> str:
    point = f"in the point {weight!r}@{progress!r}"
    if not 0 <= weight <= MAX_WEIGHT:  # also catches nan
        return f"{point}, the weight {weight!r} is not in 0 to {tidy(MAX_WEIGHT)}"
    if not 0 <= progress <= 1:
        return f"{point}, the progress {progress!r} is not in 0 to 1"
    return f"{point}, the progress {progress!r} does not come after {before!r}" if progress <= before else ""


def _nearest_text(points: tuple[tuple[float, float], ...] | list[tuple[float, float]]) -> str:
    """The text of the nearest valid curve: clamped, sorted, one point a progress, cut to the maximum."""
    usable = [(p, w) for p, w in points if not math.isnan(p + w)]
    clamped = {min(max(p, 0.0), 1.0): min(max(w, 0.0), MAX_WEIGHT) for p, w in usable}
    return _text(tuple(sorted(clamped.items()))[:MAX_POINTS])


def _text(points: tuple[tuple[float, float], ...]) -> str:
    return ", ".join(f"{weight!r}@{progress!r}" for progress, weight in points)


@dataclass(frozen=True)
class CurveText(Kind):
    """A Curve in Python, its text everywhere else."""

    max_length: int = 4096

    def check(self, value: object) -> Curve:
        if isinstance(value, Curve):
            return value
        raise refusal(f"{show(value)} is not a curve", f"Use {self.describe()}.")

    def read(self, data: object) -> Curve:
        if isinstance(data, Curve):
            return data
        if not isinstance(data, str):
            raise refusal(f"{show(data)} is not the text of a curve", f"Use {self.describe()}.")
        if len(data) > self.max_length:
            raise refusal(f"has {len(data)} characters, the maximum is {self.max_length}", "Use fewer points.")
        try:
            return Curve.parse(data)
        except SettingsError as error:
            raise refusal(error.problem.removeprefix("curve: "), error.hint, error.nearest) from None

    def write(self, value: Any) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        point = rf"\s*{_NUMBER}\s*@\s*{_NUMBER}\s*"
        pattern = rf"^\s*$|^{point}([,;\n]{point})*$"
        return {"type": "string", "maxLength": self.max_length, "pattern": pattern}

    def describe(self) -> str:
        return "weight@progress points, as in 0.0@0.1, 1.0@0.3, 0.8@1.0"

    def parse(self, text: str) -> str:
        return text

    def format(self, value: Any) -> str:
        return str(value)
