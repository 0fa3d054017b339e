"""How far a picture is at a timestep."""

from __future__ import annotations

from torch import Tensor


def progress_of(timestep: float | Tensor, train_timesteps: int) -> float:
    """Progress in [0, 1] of a call; its rows share one timestep, a number, [], [1] or [R], which may be fractional."""
    t = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
    return min(max(1 - t / (train_timesteps - 1), 0.0), 1.0)
