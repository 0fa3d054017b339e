"""The host's VAE for our own pictures, in the way in which its img2img encodes init pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.session.scene import EncodePicture, Picture

_FULL = 0  # modules.sd_samplers_common.approximation_indexes: the VAE itself, whatever encoder init pictures get


def picture_encoder(p: Any) -> EncodePicture:
    """Pictures -> latents in float32 on the CPU, by the model that ``p`` has when it is called."""

    def encode(picture: Picture) -> Tensor:
        """RGB [h, w, 3] -> [4, h / 8, w / 8], scaled as the UNet's."""
        import numpy as np
        import torch
        from modules import devices, sd_samplers_common

        pixels = torch.as_tensor(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
        # The host draws from the VAE's distribution: always alike, and without a trace in the job's own numbers.
        with torch.random.fork_rng(), torch.no_grad(), devices.autocast():  # pyright: ignore[reportUnknownMemberType]
            torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
            latents: Tensor = sd_samplers_common.images_tensor_to_samples(pixels, _FULL, p.sd_model)
        return latents[0].detach().to("cpu", torch.float32, copy=True)

    return encode
