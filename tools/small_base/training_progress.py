"""Progress of a training run: time, steps and running means of the losses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Progress:
    """Seconds that a run trained, its steps, and the running means of the losses.

    Attributes:
        newest: share of a step's losses in the means.
    """

    spent: float = 0.0
    step: int = 0
    newest: float = 0.01
    means: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def note(self, losses: dict[str, Tensor]) -> None:
        """Takes in the losses of a finished step."""
        for name, loss in losses.items():
            self.means[name] = torch.lerp(self.means.get(name, loss.detach()), loss.detach(), self.newest)
        self.step += 1

    def describe(self) -> str:
        """Describes the progress in a line; waits for the device."""
        means = " ".join(f"{name} {float(value):.4f}" for name, value in self.means.items())
        return f"{self.step} {means} {self.spent:.0f} s"
