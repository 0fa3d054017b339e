"""How strongly the identity acts, over progress and over the depth of the UNet."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

from dp_adapter.core.types import Level, Site


@dataclass(frozen=True)
class Schedule:
    """Weight factor of the identity, before its own strength s.

    Attributes:
        start, end: progress interval, inclusive at both ends; the factor is 0 outside.
        curve: (progress, factor) points, progress strictly increasing; linear between, constant beyond. Empty is 1.
        levels: factor per UNet level.
        sites: factor per site index, on top of its level's.
    """

    start: float = 0.0
    end: float = 1.0
    curve: tuple[tuple[float, float], ...] = ()
    levels: Mapping[Level, float] = field(
        default_factory=lambda: MappingProxyType({"down": 1.0, "middle": 1.0, "up": 1.0})
    )
    sites: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    def at(self, progress: float) -> float:
        """Factor at ``progress``, the same for every site."""
        return curve_at(self.curve, progress) if self.start <= progress <= self.end else 0.0

    def of(self, site: Site) -> float:
        """Factor of ``site``, the same at every step."""
        return self.levels[site.level] * self.sites.get(site.index, 1.0)

    @property
    def ever_active(self) -> bool:
        """Whether any progress has a factor other than 0."""
        return self.start <= self.end and (not self.curve or any(factor for _, factor in self.curve))


def curve_at(points: tuple[tuple[float, float], ...], progress: float) -> float:
    """Piecewise linear interpolation of (progress, factor) points, constant beyond the ends; 1 without points."""
    if not points:
        return 1.0
    right = bisect_right([p for p, _ in points], progress)
    if right == 0 or right == len(points):
        return points[max(right - 1, 0)][1]
    (p0, f0), (p1, f1) = points[right - 1], points[right]
    return f0 + (f1 - f0) * (progress - p0) / (p1 - p0)


def progress_of(timestep: float | Tensor, train_timesteps: int) -> float:
    """Progress in [0, 1] of a call; its rows share one timestep, a number, [], [1] or [R], which may be fractional."""
    t = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
    return min(max(1 - t / (train_timesteps - 1), 0.0), 1.0)
