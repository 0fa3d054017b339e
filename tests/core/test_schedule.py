"""Strength over progress and depth."""

from __future__ import annotations

import pytest

from dp_adapter.core.schedule import Schedule, curve_at
from dp_adapter.core.types import Level, Site


def site(level: Level, index: int = 3) -> Site:
    return Site(index, "x", level, 1, 32, 4)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0.0, 0.0), (0.1, 0.0), (0.2, 0.5), (0.3, 1.0), (0.65, 0.9), (1.0, 0.8), (0.05, 0.0), (0.299, 0.995)],
)
def test_the_curve_of_the_method(progress: float, factor: float) -> None:
    """``0.0@0.1, 1.0@0.3, 0.8@1.0``: linear between, constant beyond."""
    assert curve_at(((0.1, 0.0), (0.3, 1.0), (1.0, 0.8)), progress) == pytest.approx(factor)


def test_curves_of_no_and_of_one_point() -> None:
    assert curve_at((), 0.3) == 1.0
    assert [curve_at(((0.5, 0.7),), p) for p in (0.0, 0.5, 1.0)] == [0.7] * 3


@pytest.mark.parametrize(
    ("progress", "acts"), [(0.19999, False), (0.2, True), (0.5, True), (0.6, True), (0.60001, False)]
)
def test_the_span_includes_both_ends(progress: float, acts: bool) -> None:
    assert Schedule(0.2, 0.6).at(progress) == float(acts)


def test_span_and_curve_work_together() -> None:
    schedule = Schedule(0.5, 1.0, curve=((0.0, 0.0), (1.0, 1.0)))
    assert [schedule.at(p) for p in (0.25, 0.5, 0.75)] == [0.0, 0.5, 0.75]


def test_levels_and_sites_multiply() -> None:
    schedule = Schedule(levels={"down": 0.5, "middle": 0.0, "up": 2.0}, sites={3: 0.25})
    assert schedule.of(site("down")) == 0.125
    assert schedule.of(site("down", 4)) == 0.5
    assert schedule.of(site("up")) == 0.5
    assert schedule.of(site("middle")) == 0.0


@pytest.mark.parametrize(
    ("schedule", "ever"),
    [
        (Schedule(), True),
        (Schedule(1.0, 1.0), True),
        (Schedule(0.6, 0.5), False),
        (Schedule(curve=((0.0, 0.0), (1.0, 0.0))), False),
        (Schedule(curve=((0.0, 0.0), (1.0, 0.1))), True),
    ],
)
def test_whether_it_is_ever_active(schedule: Schedule, ever: bool) -> None:
    assert schedule.ever_active == ever
