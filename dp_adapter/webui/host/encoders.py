"""The host's own encoders for our short texts and for pictures: what its UNet would get for them.

Texts by the call that the host's own ``get_conds_with_caching`` makes (modules/processing.py), but beside its caches;
pictures in the way in which its img2img encodes init pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import HostError
from dp_adapter.hosts.prompts.person_words import CHUNK

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.session.scene import Encode, EncodePicture, Picture

_FULL = 0  # modules.sd_samplers_common.approximation_indexes: the VAE itself, whatever encoder init pictures get


def text_encoder(p: Any) -> Encode:
    """Texts -> contexts [n, 77, D] in float32 on the CPU, by the model that ``p`` has when it is called.

    The host brings its encoders to their device for that, reads emphasis, embeddings and ``clip skip`` as in prompts,
    and applies the LoRA that are active at the moment.
    """

    def encode(texts: Sequence[str]) -> Tensor:
        """Raises HostError where the model has no text encoder that can be asked, or a text takes several chunks."""
        context = encode_conditions(p, texts)
        if context.shape[1] != CHUNK:
            longest = max(texts, key=len)
            raise HostError(f"'{longest[:40]}…' is too long for one chunk of the text encoder")
        return context

    return encode


def encode_conditions(p: Any, texts: Sequence[str]) -> Tensor:
    """Texts -> contexts [n, 77 m, D] of as many chunks as the longest has, in float32 on the CPU.

    Raises:
        HostError: the model has no text encoder that can be asked.
    """
    import torch
    from modules import devices, prompt_parser, shared

    model: Any = p.sd_model
    if not hasattr(model, "get_learned_conditioning"):
        raise HostError(
            f"The loaded model ({type(model).__name__}) does not encode texts",
            "Load a Stable Diffusion 1.5 or SDXL checkpoint with its text encoders.",
        )
    read = prompt_parser.SdConditioning(list(texts), width=p.width, height=p.height)
    with torch.no_grad(), devices.autocast():
        if hasattr(model, "set_clip_skip"):  # Forge tells its engine before each call
            model.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))
        encoded: Any = model.get_learned_conditioning(read)
    # SDXL's is a dictionary with a pooled vector beside it
    context: Tensor = encoded if hasattr(encoded, "shape") else encoded["crossattn"]
    return context.detach().to("cpu", torch.float32, copy=True)


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
