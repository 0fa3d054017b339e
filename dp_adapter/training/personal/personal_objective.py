"""One step of personalising: its batch of latents and prompts with learned words, and the terms of its loss."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dp_adapter.errors import HostError
from dp_adapter.hosts.prompts import encode_prompts, textual_inversion
from dp_adapter.hosts.prompts.textual_inversion import Texts
from dp_adapter.training.personal import personal_losses as losses
from dp_adapter.training.personal.learned_words import TEMPLATES, PromptPair, fill_templates, make_prompt_pairs
from dp_adapter.training.personal.text_attention import token_shares
from dp_adapter.training.personal.varied_views import VariedView
from dp_adapter.weights.families.personal import Personal

CORE_EMBEDDING, CORE_ATTENTION = 1.5e-4, 0.05  # lambda_emb and lambda_attn, arXiv 2408.15914 appendix G


@dataclass(frozen=True)
class PersonalOptions:
    """How a person is learned.

    Attributes:
        words: how many learned words; word: the plain word that they replace, one token of the text encoder.
        rate: of the learned words and of gamma (0.0015 times the batch of 8, as released); network_rate: of the
            enhancer and the rest of the adapter, which the released code gives the same.
        prior: weight of the Mahalanobis distance.
        masked: the denoising loss counts inside the head's mask alone (Break-A-Scene).
        core: context regularisation (CoRe) on prompts that no picture is needed for.
        released: as ID-EA's public code: the enhancer is not trained, and the result applies the words alone.
        templates: training prompts, ``{}`` for the person.
        checkpointing: computes the UNet's activations twice for less memory.
    """

    steps: int = 320
    batch: int = 8
    words: int = 2
    word: str = "person"
    rate: float = 0.012
    network_rate: float = 1e-3
    weight_decay: float = 0.01
    prior: float = 8e-4
    masked: bool = False
    core: bool = False
    released: bool = False
    templates: Sequence[str] = TEMPLATES
    seed: int = 0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        """Raises HostError for a number that cannot be used."""
        for name, least in (("steps", 1), ("batch", 1), ("words", 1)):
            if getattr(self, name) < least:
                raise HostError(f"{name} is {getattr(self, name)}", f"Give {least} or more.")
        rates = (self.rate, self.network_rate, self.prior, self.weight_decay)
        if not all(math.isfinite(one) and one >= 0 for one in rates):
            raise HostError("Rates and weights of losses must be 0 or more")


@dataclass(frozen=True, eq=False)
class LatentBank:
    """Encoded views: mean and deviation of their latents [V, 4, h, w], scaled as the UNet's, and masks [V, 1, h, w]."""

    mean: Tensor
    deviation: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class PersonalBatch:
    """One step's data.

    Attributes:
        noisy, target: [B, 4, h, w]; timesteps: [B]; mask: [B, 1, h, w].
        texts: numbers of the objective's texts [B]; pair: number of its pair of prompts for CoRe.
    """

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    mask: Tensor
    texts: Tensor
    pair: int


@torch.no_grad()
def encode_views(pipeline: Any, views: Sequence[VariedView]) -> LatentBank:
    """Encodes the views one at a time, once, so that training needs no VAE."""
    vae, scaling = pipeline.vae, pipeline.vae.config.scaling_factor
    means: list[Tensor] = []
    deviations: list[Tensor] = []
    for view in views:
        pixels = torch.as_tensor(view.picture).permute(2, 0, 1)[None]
        found = vae.encode(pixels.to(vae.device, vae.dtype) / 127.5 - 1).latent_dist
        means.append(found.mean.float().cpu() * scaling)
        deviations.append(found.std.float().cpu() * scaling)
    mean = torch.cat(means)
    masks = torch.as_tensor(np.stack([view.mask for view in views]))[:, None]
    mask = torch.nn.functional.interpolate(masks, mean.shape[-2:], mode="area")
    if not torch.isfinite(mean).all():
        raise HostError("The VAE's result is not a number", "Load the model with dtype float32 or bfloat16.")
    return LatentBank(mean, torch.cat(deviations), mask)


class PersonalObjective:
    """The losses of one person's modules inside a frozen base model's text encoders and UNet.

    Args:
        pipeline: Stable Diffusion 1.5 or SDXL of diffusers.
        size: side of the pictures in px, one of SDXL's conditions.
    """

    def __init__(self, pipeline: Any, personal: Personal, options: PersonalOptions, size: int) -> None:
        for module in (pipeline.unet, *(encoder for _, encoder in encode_prompts.readers_of(pipeline))):
            module.requires_grad_(False).eval()
        self._pipeline, self._personal, self._options = pipeline, personal, options
        count = options.words
        self.texts: Texts = fill_templates(pipeline, options.templates, options.word, count)
        self.pairs: list[PromptPair] = make_prompt_pairs(pipeline, options.word, count) if options.core else []
        self._precision = losses.inverse_covariance(personal.get_buffer("anchor"))
        self._added = _sdxl_conditions(pipeline, options.word, size)

    def encode(self, texts: Texts) -> Tensor:
        """Encodes texts with the learned words: y' [B, 77, D] in float32."""
        assert self._personal.learned is not None
        y = textual_inversion.encode(self._pipeline, texts, self._personal.learned).float()
        return self._personal.adapter(y, self._personal.fused())

    def losses(self, batch: PersonalBatch) -> dict[str, Tensor]:
        """The terms by name, weighted; their sum is minimised."""
        options, personal = self._options, self._personal
        prediction = self._predict(batch.noisy, batch.timesteps, self.encode(self.texts[batch.texts]))
        terms = {"denoising": losses.denoising(prediction, batch.target, batch.mask if options.masked else None)}
        assert personal.learned is not None
        distance = losses.mahalanobis(personal.learned, personal.get_buffer("anchor"), self._precision)
        terms["prior"] = options.prior * distance
        return terms | (self._core_losses(batch) if options.core else {})

    def _core_losses(self, batch: PersonalBatch) -> dict[str, Tensor]:
        """CoRe's terms of one pair of prompts, on what the UNet gets, at the batch's first latents."""
        pair = self.pairs[batch.pair]
        own = self.encode(pair.learned)
        with torch.no_grad():
            nothing = torch.zeros(1, sum(textual_inversion.widths(self._pipeline)))
            plain = textual_inversion.encode(self._pipeline, pair.plain, nothing).float()
        one = slice(0, 1)
        with _without_checkpointing(self._pipeline.unet), token_shares(self._pipeline.unet) as shares:
            self._predict(
                batch.noisy[one].expand(2, -1, -1, -1), batch.timesteps[one].expand(2), torch.cat([own, plain])
            )
        around, around_plain = (at.to(own.device) for at in (pair.around, pair.around_plain))
        attention = shares.mean
        return {
            "context": CORE_EMBEDDING * losses.context_embedding(own[0, around], plain[0, around_plain]),
            "attention": CORE_ATTENTION
            * losses.context_attention(attention[0, around], attention[1, around_plain].detach()),
        }

    def _predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        unet = self._pipeline.unet
        added = None if self._added is None else {k: v.expand(len(noisy), -1) for k, v in self._added.items()}
        return unet(
            noisy.to(unet.dtype), timesteps, encoder_hidden_states=context.to(unet.dtype), added_cond_kwargs=added
        ).sample


def draw_batch(
    pipeline: Any, bank: LatentBank, objective: PersonalObjective, options: PersonalOptions, draws: torch.Generator
) -> PersonalBatch:
    """Draws one step's data on the CPU, so that a seed means the same on every device."""
    device, config = pipeline.unet.device, pipeline.scheduler.config
    rows = torch.randint(len(bank.mean), (options.batch,), generator=draws)
    latents = bank.mean[rows] + bank.deviation[rows] * torch.randn(bank.mean[rows].shape, generator=draws)
    noise = torch.randn(latents.shape, generator=draws)
    timesteps = torch.randint(config.num_train_timesteps, (options.batch,), generator=draws)
    texts = torch.randint(len(objective.texts.places), (options.batch,), generator=draws)
    pair = int(torch.randint(max(1, len(objective.pairs)), (1,), generator=draws))
    share = pipeline.scheduler.alphas_cumprod.cpu().float()[timesteps][:, None, None, None]
    noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
    target = noise
    if config.prediction_type == "v_prediction":
        target = share.sqrt() * noise - (1 - share).sqrt() * latents
    elif config.prediction_type != "epsilon":
        raise HostError(f"The base model predicts '{config.prediction_type}'", "Choose one of noise or v prediction.")
    moved = (one.to(device) for one in (noisy, target, timesteps, bank.mask[rows]))
    return PersonalBatch(*moved, texts=texts, pair=pair)


@contextmanager
def _without_checkpointing(unet: Any) -> Generator[None]:
    """Turns checkpointing off: when it computes activations again, the hooks on the attentions are gone."""
    checkpointing: bool = unet.is_gradient_checkpointing
    unet.disable_gradient_checkpointing()
    try:
        yield
    finally:
        if checkpointing:
            unet.enable_gradient_checkpointing()


def _sdxl_conditions(pipeline: Any, word: str, size: int) -> dict[str, Tensor] | None:
    """SDXL's conditions beside the context: the pooled plain text [1, P] and the sizes [1, 6]; None for SD1.5.

    The pooled text has no learned words, as in the hosts, which use their own.
    """
    if not hasattr(pipeline, "text_encoder_2"):
        return None
    unet = pipeline.unet
    pooled = encode_prompts.encode(pipeline, f"a photo of a {word}", "", guided=False)["pooled_prompt_embeds"]
    sizes = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32)
    return {"text_embeds": pooled.to(unet.device, unet.dtype), "time_ids": sizes.to(unet.device, unet.dtype)}
