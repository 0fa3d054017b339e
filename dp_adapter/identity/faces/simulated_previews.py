"""What a picture looks like while it forms: a simple model of the denoiser's estimate x̂0 at some progress of a run.

The picture is diffused as Stable Diffusion does it, and estimated back by the best linear filter for pictures whose
spectrum falls as 1/f²: S / (S + σ²) at each frequency. So what is large comes first, as in a real preview. A real
denoiser knows more about faces than their spectrum and shows them earlier; it also invents some that change later.
"""

from __future__ import annotations

import numpy as np

from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.pictures.picture_files import Picture

_STEPS = 1000
_BETAS = (0.00085, 0.012)  # scaled linear, both families: huggingface.co/stabilityai, scheduler_config.json


def noise_at(progress: float) -> float:
    """σ, the noise over the signal, at a progress from 0 (noise) to 1 (picture)."""
    betas: Floats = np.linspace(_BETAS[0] ** 0.5, _BETAS[1] ** 0.5, _STEPS, dtype=np.float32) ** 2
    kept = float(np.cumprod(1 - betas)[round((_STEPS - 1) * (1 - progress))])
    return ((1 - kept) / kept) ** 0.5


def simulate_preview(picture: Picture, progress: float, seed: int = 0) -> Picture:
    """The estimate [H, W, 3] of a picture [H, W, 3] at a progress; the same for the same seed."""
    values = picture.astype(np.float32) / 255
    mean = values.mean((0, 1), keepdims=True)
    spread = max(float(values.std()), 1e-3)
    noise = noise_at(progress)
    random = np.random.default_rng(seed)
    noisy = (values - mean) / spread + noise * random.standard_normal(values.shape, dtype=np.float32)
    signal = _spectrum(*values.shape[:2])
    shrunk = np.fft.rfft2(noisy, axes=(0, 1)) * (signal / (signal + noise**2))[..., None]
    estimate = np.fft.irfft2(shrunk, values.shape[:2], axes=(0, 1)) * spread + mean
    return (estimate * 255).round().clip(0, 255).astype(np.uint8)


def _spectrum(height: int, width: int) -> Floats:
    """Power [H, W // 2 + 1] falling as 1/f², 1 on average over all frequencies as white noise has it."""
    long = max(height, width)
    down, across = np.fft.fftfreq(height, 1 / long), np.fft.fftfreq(width, 1 / long)
    power = 1 / np.maximum(1, down[:, None] ** 2 + across[None, :] ** 2)
    return (power / power.mean())[:, : width // 2 + 1].astype(np.float32)
