"""The frozen half of training: a diffusers pipeline's UNet, VAE and text encoders, on one device.

Shapes: B rows, R side of the pictures in px, h x w cells of the latent grid, D width of the text context.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dp_adapter.errors import TrainingError
from dp_adapter.hosts.attach.diffusers import base_of
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.training.config import Config

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TextEncoding:
    """Encoded captions: context [B, 77, D], and SDXL's ``text_embeds`` and ``time_ids``."""

    context: Tensor
    added: dict[str, Tensor] | None


class FrozenBase:
    """The base model, whose weights are not trained.

    Args:
        pipeline: of ``hosts.pipelines.load_pipeline.load``.

    Raises:
        TrainingError: the model predicts something else than the noise, or takes more than latents.
    """

    def __init__(self, pipeline: Any, name: str) -> None:
        self.pipeline = pipeline
        self.unet: nn.Module = pipeline.unet
        self.vae: Any = pipeline.vae
        self.family: Base = base_of(self.unet)
        self.name = name
        kind = pipeline.scheduler.config.get("prediction_type", "epsilon")
        if kind != "epsilon":
            raise TrainingError(f"{name} predicts '{kind}'", "Choose a model that predicts the noise (epsilon).")
        if pipeline.unet.config.in_channels != 4:
            raise TrainingError(f"{name} is an inpainting model", "Choose its base model.")
        self.alphas = cast(Tensor, pipeline.scheduler.alphas_cumprod).to(self.device, torch.float32)
        """[1000], the share of the picture's variance that is left at each timestep."""
        for module in self.modules:
            module.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def modules(self) -> list[nn.Module]:
        parts = (getattr(self.pipeline, name, None) for name in ("unet", "vae", "text_encoder", "text_encoder_2"))
        return [part for part in parts if isinstance(part, nn.Module)]

    @property
    def context(self) -> int:
        """Width D of the text context."""
        return self.pipeline.unet.config.cross_attention_dim

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, R, R] in 0..255 to mean and deviation of the VAE's posterior [B, 2, 4, h, w], unscaled."""
        work = torch.float32 if self.vae.config.get("force_upcast", False) else self.vae.dtype
        dtype = self.vae.dtype
        if dtype != work:  # torch's own move: diffusers' warns each time
            nn.Module.to(self.vae, work)
        try:
            posterior = self.vae.encode(pixels.to(self.device, work) / 127.5 - 1).latent_dist
        finally:
            if dtype != work:
                nn.Module.to(self.vae, dtype)
        return torch.stack([posterior.mean, posterior.std], 1).float()

    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Samples the UNet's latents [B, 4, h, w] from the posterior with standard normal ``noise``."""
        return (moments[:, 0] + moments[:, 1] * noise) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents [B, 4, h, w] to pictures [B, 3, R, R] in -1..1, with gradients."""
        latents = latents / self.vae.config.scaling_factor
        if not overflows(self.vae):
            return self.vae.decode(latents.to(self.vae.dtype)).sample.float()
        with torch.autocast(self.device.type, enabled=False):
            return self._float32_vae.decode(latents.float()).sample

    @cached_property
    def _float32_vae(self) -> Any:
        """In float32. A copy, as the pipeline that draws the samples has the same VAE and wants one dtype."""
        return copy.deepcopy(self.vae).float()

    @torch.no_grad()
    def encode_texts(self, captions: Sequence[str], size_and_crop: Tensor, side: int) -> TextEncoding:
        """Encodes captions, cut at 77 tokens, as the model's pipeline does.

        Args:
            size_and_crop: [B, 4], height and width of the original and top and left of the crop; side: R. For SDXL.
        """
        pipeline = self.pipeline
        if self.family == "sd15":
            return TextEncoding(
                self._run_encoder(pipeline.tokenizer, pipeline.text_encoder, captions).last_hidden_state, None
            )
        first = self._run_encoder(pipeline.tokenizer, pipeline.text_encoder, captions)
        second = self._run_encoder(pipeline.tokenizer_2, pipeline.text_encoder_2, captions)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        pooled: Tensor = second.text_embeds
        if pipeline.config.get("force_zeros_for_empty_prompt", False):
            has_text = torch.tensor([bool(caption) for caption in captions], device=context.device)
            context, pooled = context * has_text[:, None, None], pooled * has_text[:, None]
        size = torch.full_like(size_and_crop[:, :2], side)
        time_ids = torch.cat([size_and_crop, size], 1).to(pooled)
        return TextEncoding(context, {"text_embeds": pooled, "time_ids": time_ids})

    def _run_encoder(self, tokenizer: Any, encoder: Any, captions: Sequence[str]) -> Any:
        ids = tokenizer(list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return encoder(ids.input_ids.to(self.device), output_hidden_states=True)

    def digest_vae(self) -> str:
        """sha256 of the VAE's weights, which names the cache of its latents."""
        sha = hashlib.sha256()
        for name, value in sorted(self.vae.state_dict().items()):
            sha.update(name.encode())
            sha.update(value.detach().float().cpu().numpy().tobytes())
        return sha.hexdigest()


def overflows(vae: Any) -> bool:
    """Whether a VAE's activations may leave float16's range, as its configuration warns."""
    return vae.dtype == torch.float16 and bool(vae.config.get("force_upcast", False))


def load(config: Config, device: torch.device) -> FrozenBase:
    """Loads the base model of a run.

    Raises:
        HostError: the file is missing, damaged or another kind of model.
        TrainingError: it cannot be trained on, or is of another family than the configuration says.
    """
    path = Path(config.base.model)
    extra = Path(config.base.config) if config.base.config else None
    dtype = str(DTYPES[config.precision]).removeprefix("torch.")
    frozen = FrozenBase(load_pipeline.load(path, str(device), dtype, config=extra), path.name)
    require_family(path.name, frozen.family, config.base.family)
    if config.gradient_checkpointing:
        cast(Any, frozen.unet).enable_gradient_checkpointing()
    return frozen


def require_family(name: str, found: Base, expected: Base) -> None:
    """Raises TrainingError where a model is of another family than the configuration says."""
    if found != expected:
        problem = f"{name} is of the family {found}, the configuration says {expected}"
        raise TrainingError(problem, f'Set base.family = "{found}".')
