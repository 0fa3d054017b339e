"""Bootstrap intervals of means over persons.

Pictures of one person are not independent, so whole persons are drawn again, with all their pictures (cluster
bootstrap: Davison and Hinkley, 1997, section 3.8). scipy.stats.bootstrap has no clusters, hence these few lines.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval; ``low`` and ``high`` are None with fewer than two persons."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def apart_from(self, other: Interval) -> bool | None:
        """Whether the two intervals do not overlap; None where one of them is unknown."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low > other.high or other.low > self.high


def bootstrap_interval(values: Sequence[float], persons: Sequence[Hashable]) -> Interval | None:
    """The mean of values and its percentile interval, drawing persons with replacement, the same for every arm.

    For a paired difference give the differences.

    Args:
        persons: whose picture each value is of.

    Returns:
        None where there is no value.
    """
    if not values:
        return None
    names = sorted(set(persons), key=str)
    index = {name: number for number, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for value, person in zip(values, persons, strict=True):
        sums[index[person]] += value
        counts[index[person]] += 1
    mean = float(sums.sum() / counts.sum())
    if len(names) < 2:
        return Interval(mean, None, None, len(values))
    drawn = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), len(values))
