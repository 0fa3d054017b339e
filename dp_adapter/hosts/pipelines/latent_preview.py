"""Previews of latents without a decoder: what is left where no cheap one is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp_adapter.hosts.attach.sites import Base

Pixels = NDArray[np.uint8]

# Latent channel -> red, green, blue in -1..1. AUTOMATIC1111/stable-diffusion-webui v1.10.1 modules/sd_vae_approx.py.
RGB_FACTORS: dict[Base, Sequence[Sequence[float]]] = {
    "sd15": ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473)),
    "sdxl": ((0.3448, 0.4168, 0.4395), (-0.1953, -0.029, 0.025), (0.1074, 0.0886, -0.0163), (-0.373, -0.2499, -0.2088)),
}  # fmt: skip
LARGEST = 48  # cells of a latent's long side that a costly decoder gets: 384 px show any face, in half the time of 512


def linear(latents: Tensor, base: Base) -> Tensor:
    """[S, 4, h, w] -> [S, 3, h, w] in -1..1, a pixel for each cell."""
    factors = torch.tensor(RGB_FACTORS[base], dtype=latents.dtype, device=latents.device)
    return torch.einsum("slhw,lc->schw", latents, factors)


def shrunk(latents: Tensor) -> Tensor:
    """Latents [S, c, h, w] with a long side of at most ``LARGEST`` cells, by area, in the order that decoders like.

    A decoder makes a smaller picture of them, a little softer; for finding faces that is all the same.
    """
    height, width = latents.shape[-2:]
    factor = LARGEST / max(height, width)
    if factor < 1:
        size = max(1, round(height * factor)), max(1, round(width * factor))
        latents = torch.nn.functional.interpolate(latents, size, mode="area")
    # A CPU decodes TAESD in two thirds of the time so; convolutions hand the order on.
    return latents.contiguous(memory_format=torch.channels_last)


def pictures(decoded: Tensor) -> list[Pixels]:
    """[S, 3, h, w] in -1..1 -> uint8 RGB [h, w, 3] each."""
    scaled = (decoded.detach().float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return [np.ascontiguousarray(one) for one in scaled.permute(0, 2, 3, 1).cpu().numpy()]
