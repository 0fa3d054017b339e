"""Finds a background's pattern: the best of a bank of templates, each at many phases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

GRID = 64
"""Side of the grid on which templates are compared, whatever the size of the picture."""

PERIODS = (0.1875, 0.25)
"""Of the patterns, in sides of the picture: 24 and 32 of 128 px."""

_PHASES = 8
_EXPLAINED = 0.3
"""Least share of the background's variance that a pattern explains; a wall with a shadow stays below."""

_CONTRAST = 0.055
"""Least contrast of a pattern: standard deviation of the lightness explained, as a share of the lightness range."""


@dataclass(frozen=True)
class FoundPattern:
    """The best pattern: its name, the share of variance that it explains, and the standard deviation explained."""

    name: str
    explained: float
    contrast: float


def find_pattern(lightness: Floats, background: Floats) -> FoundPattern:
    """Finds the pattern of a background.

    Args:
        lightness: [GRID, GRID] in 0..1; background: [GRID, GRID], 1 where it counts, 0 elsewhere.

    Returns:
        ``plain`` where no template explains enough or too little is seen.
    """
    weights = background.reshape(-1)
    total = float(weights.sum())
    if total < 0.03 * GRID * GRID:
        return FoundPattern("plain", 0.0, 0.0)
    y, x = np.mgrid[0:GRID, 0:GRID].astype(np.float32) / GRID - 0.5
    slope = np.stack([np.ones(GRID * GRID, np.float32), x.reshape(-1), y.reshape(-1)], 1)
    root = np.sqrt(weights)[:, None]
    flat = lightness.reshape(-1)
    plane = np.linalg.lstsq(slope * root, flat * root[:, 0], rcond=None)[0]
    rest = (flat - slope @ plane) * weights
    rest = (rest - weights * rest.sum() / total).astype(np.float32)
    variance = float((rest**2).sum()) / total
    best = FoundPattern("plain", 0.0, 0.0)
    for name, bank in templates().items():  # [K, N]
        centred = bank - (bank @ weights / total)[:, None]
        spread = (centred**2) @ weights / total  # [K]
        shared = (centred @ rest) / total
        explained = shared**2 / np.maximum(spread * variance, 1e-9)
        largest = float(explained.max())
        if largest > best.explained:
            best = FoundPattern(name, largest, float(np.sqrt(largest * variance)))
    if best.explained < _EXPLAINED or best.contrast < _CONTRAST:
        return FoundPattern("plain", best.explained, best.contrast)
    return best


@cache
def templates() -> dict[str, Floats]:
    """Every pattern at every phase, [K, GRID * GRID] in -1..1 by name."""
    y, x = (np.mgrid[0:GRID, 0:GRID].astype(np.float32) + 0.5) / GRID
    found: dict[str, list[Floats]] = {"striped": [], "checkered": [], "dotted": []}
    for period in PERIODS:
        steps = np.arange(_PHASES, dtype=np.float32) / _PHASES * period
        for dx in steps:
            found["striped"] += [_square(x + dx, period), _square(y + dx, period)]
            for dy in steps:
                found["checkered"].append(_square(x + dx, period) * _square(y + dy, period))
                found["dotted"].append(_dots(x + dx, y + dy, period))
    return {name: np.stack([one.reshape(-1) for one in bank]).astype(np.float32) for name, bank in found.items()}


def _square(along: Floats, period: float) -> Floats:
    return np.where((along / period) % 1 < 0.5, 1, -1).astype(np.float32)


def _dots(x: Floats, y: Floats, period: float) -> Floats:
    u, v = x % period - period / 2, y % period - period / 2
    return np.where(np.hypot(u, v) < 0.3 * period, 1, -1).astype(np.float32)
