"""Intervals over persons, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from dp_adapter.evaluation.bootstrap import Interval, bootstrap_interval


def test_mean_and_interval_of_a_known_spread() -> None:
    """Of n persons with one value each, the interval is near mean +- 1.96 s / sqrt(n)."""
    values = np.random.default_rng(1).normal(0.5, 0.2, 60)
    found = bootstrap_interval(values.tolist(), range(60))
    assert found is not None and found.low is not None and found.high is not None
    half = 1.96 * values.std() / 60**0.5
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_more_pictures_of_the_same_persons_do_not_narrow_it() -> None:
    few = bootstrap_interval([0.1, 0.5, 0.9, 0.3], ["a", "b", "c", "d"])
    many = bootstrap_interval([0.1, 0.5, 0.9, 0.3] * 50, ["a", "b", "c", "d"] * 50)
    assert few is not None and many is not None
    assert (many.mean, many.low, many.high) == pytest.approx((few.mean, few.low, few.high))
    assert (few.count, many.count) == (4, 200)


def test_persons_weigh_by_their_pictures() -> None:
    found = bootstrap_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert found == Interval(0.75, 0.0, 1.0, 4)


def test_one_person_gives_no_interval_and_nobody_nothing() -> None:
    assert bootstrap_interval([0.2, 0.4], ["a", "a"]) == Interval(pytest.approx(0.3), None, None, 2)  # pyright: ignore[reportArgumentType]
    assert bootstrap_interval([], []) is None


def test_whether_intervals_overlap() -> None:
    low, high, unknown = Interval(0.2, 0.1, 0.3, 9), Interval(0.5, 0.4, 0.6, 9), Interval(0.5, None, None, 1)
    assert low.apart_from(high) and high.apart_from(low)
    assert low.apart_from(Interval(0.3, 0.25, 0.6, 9)) is False
    assert low.apart_from(unknown) is None
