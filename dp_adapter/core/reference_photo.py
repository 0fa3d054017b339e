"""A person's photo that the picture's self-attention may look at, and how noisy it is shown at a step.

Idea: FreeCustom (arXiv 2405.13870), BootPIG (arXiv 2401.13974), DreamTuner (arXiv 2312.13691); ours in regions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dp_adapter.core.regions.region_masks import on_grid
from dp_adapter.core.types import Grid, Level

NoiseLevel = Callable[[Tensor | float], tuple[float, float]]
"""From the UNet's timestep to the shares of picture and of noise in what the UNet gets."""

UP: frozenset[Level] = frozenset({"up"})
_SURE = 0.5  # share of a cell that the person covers


@dataclass(frozen=True, eq=False)
class ReferencePhoto:
    """The photo of one person.

    Attributes:
        latents: [4, h, w] float32, noiseless, scaled as the UNet's; of the picture's size.
        mask: where in the photo the person is [1, H, W] in [0, 1]; None for everywhere.
        weight: 0 leaves the picture's self-attention as it is, 1 replaces it by the one that sees the photo, too.
        start, end: progress interval, inclusive at both ends.
        seed: of the noise that is added to the photo, the same one at every step.
        levels: parts of the UNet in which it is looked at. On the way up a position's features say what it shows; on
            the way down they still carry where things are, and the photo's layout would come along
            (aim-uofa/FreeCustom@main config_stable_diffusion.yaml takes the last six of SD1.5's nine sites there).
    """

    latents: Tensor
    mask: Tensor | None = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    seed: int = 0
    levels: frozenset[Level] = UP

    @property
    def size(self) -> Grid:
        return Grid(*self.latents.shape[-2:])

    @property
    def ever_active(self) -> bool:
        seen = self.mask is None or bool((self.mask > 0).any())
        return self.weight != 0 and self.start <= self.end and seen

    def at(self, progress: float) -> float:
        """Weight at a progress."""
        return self.weight if self.ever_active and self.start <= progress <= self.end else 0.0

    def add_noise(self, signal: float, noise: float) -> Tensor:
        """What the UNet is shown of it: [4, h, w] float32."""
        return signal * self.latents + noise * self._noise.to(self.latents)

    @functools.cached_property
    def _noise(self) -> Tensor:
        return torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(self.seed))

    def tokens(self, latent: Grid, halvings: int) -> Tensor | None:
        """Positions of a grid at which the person is, [n]; None for all. Of a small one, those with most of it."""
        if self.mask is None:
            return None
        share = on_grid(self.mask, latent, halvings).flatten()
        return (share >= min(_SURE, float(share.max()))).nonzero().flatten()


def noise_level(alphas_cumprod: Tensor) -> NoiseLevel:
    """For models whose input is sqrt(a_t) x0 + sqrt(1 - a_t) eps, whatever they predict.

    Between the timesteps of training log sigma is linear, as k-diffusion's ``DiscreteSchedule.t_to_sigma`` has it.

    Args:
        alphas_cumprod: [T], the schedule of training.
    """
    alphas = alphas_cumprod.detach().to("cpu", torch.float64)
    log_sigmas = ((1 - alphas) / alphas).log() / 2

    def level(timestep: Tensor | float) -> tuple[float, float]:
        t = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        t = min(max(t, 0.0), len(log_sigmas) - 1.0)
        low = int(t)
        high = min(low + 1, len(log_sigmas) - 1)
        return shares(float(log_sigmas[low].lerp(log_sigmas[high], t - low).exp()))

    return level


def shares(sigma: float, sigma_data: float = 1.0) -> tuple[float, float]:
    """Shares of picture and noise in (x0 + sigma eps) / sqrt(sigma^2 + sigma_data^2)."""
    signal = (sigma**2 + sigma_data**2) ** -0.5
    return signal, sigma * signal
