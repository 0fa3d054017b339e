"""Pictures as latents, by a diffusers pipeline's VAE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp_adapter.errors import HostError


@torch.no_grad()
def latents_of(pipeline: Any, picture: NDArray[np.uint8]) -> Tensor:
    """RGB [h, w, 3] -> latents [4, h / 8, w / 8] in float32 on the CPU, noiseless and scaled as the UNet's.

    Raises:
        HostError: the pipeline has no VAE.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        raise HostError("The pipeline has no VAE", "Load a model folder or checkpoint that holds one.")
    dtype: torch.dtype = vae.dtype
    # SDXL's own VAE overflows in half precision, as its configuration says.
    work = torch.float32 if dtype == torch.float16 and getattr(vae.config, "force_upcast", False) else dtype
    pixels = torch.as_tensor(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    try:
        vae.to(work)
        mode: Tensor = vae.encode(pixels.to(vae.device, work) / 127.5 - 1).latent_dist.mode()
    finally:
        vae.to(dtype)
    return (mode * vae.config.scaling_factor)[0].to("cpu", torch.float32)
