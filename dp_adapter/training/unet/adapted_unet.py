"""A frozen UNet with a trainable adapter at its text attentions.

Shapes: B rows, h x w cells of the latent grid, T identity tokens, D width of the text context.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter, SiteAdapter, TextQuerySiteAdapter
from dp_adapter.core.regions.region_masks import GATE_POWERS
from dp_adapter.core.types import Grid, Level, Site
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.adapter_fit import require_fit
from dp_adapter.hosts.attach.diffusers import sites_of
from dp_adapter.training.unet.trained_sites import (
    KEYWORD,
    Call,
    Record,
    TrainedGate,
    TrainedSelfAttention,
    TrainedTextAttention,
    masks_by_halvings,
)

Mode = Literal["add", "gated"]

_MIDDLE_STAGES = 5  # FastComposer's localization_layers (mit-han-lab/fastcomposer@3d17e84 fastcomposer/model.py)


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch.

    Attributes:
        text: [B, L, D], L = 77 in the models.
        tokens: identity tokens [B, T, D], made from zeros where the identity was dropped; None for the base model.
        mask: visually sensitive region on the latent grid [B, 1, h, w] in 0..1.
        text_on: [B], the text attention's output times this: 1, or 0 where the text is off (stage 1).
    """

    text: Tensor
    tokens: Tensor | None
    mask: Tensor
    text_on: Tensor | None = None


@dataclass(frozen=True)
class Prediction:
    """The predicted noise, and what the sites recorded; None where it was not requested.

    Attributes:
        noise: [B, 4, h, w].
        fair: L_FAIR, mean over the sites.
        localisation: L_loc, mean over the sites of the middle five stages.
        attention: [B, 1, h', w'], each position's share of attention to the identity, mean over all sites but those on
            the finest grid, resized to that grid; for ``losses.story_mask``.
        features: [B, N, I] for each site of the first up block with text attention: the text attention before W_o;
            for ``losses.edit_direction``.
    """

    noise: Tensor
    fair: Tensor | None = None
    localisation: Tensor | None = None
    attention: Tensor | None = None
    features: tuple[Tensor, ...] | None = None


def progress_of(timesteps: Tensor) -> Tensor:
    """Progress [B] in 0..1 of timesteps [B] of 1000, as ``core.schedule.progress_of`` has it for one."""
    return (1 - timesteps.float() / 999).clamp(0, 1)


class AdaptedUNet(nn.Module):
    """A frozen diffusers ``UNet2DConditionModel`` with a trainable adapter at its 16 or 70 text attentions.

    Rows may have different tokens, masks, timesteps and texts. The UNet keeps this module's attention processors, which
    compute its own attention for every other caller; so a pipeline and ``hosts.attach.diffusers.attach`` work
    on it as before. ``release`` takes them out.
    Mixed precision is by autocast: the adapter stays in float32, the UNet may be in half precision.

    Args:
        unet: its parameters are frozen here; gradient checkpointing may be enabled on it.
        mode: how the adapter acts: added to the text's attention, or FACT's gated self-attention before it.
        powers: of the mask by level, where the gate is not trained.
        weight: strength s in training.

    Raises:
        HostError: the UNet is neither SD1.5 nor SDXL, or the adapter does not fit it or the mode, or another
            ``AdaptedUNet`` has it.
    """

    def __init__(
        self,
        unet: nn.Module,
        adapter: Adapter,
        *,
        mode: Mode = "add",
        powers: Mapping[Level, float] = GATE_POWERS,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.adapter = adapter
        self.mode: Mode = mode
        self._powers, self._weight = dict(powers), weight
        self._sites = sites_of(unet)
        _require_kind(adapter, mode)
        require_fit(self._sites, adapter, self._widths)
        self._handles: list[RemovableHandle] = []
        self._install_processors()

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        *,
        identity: bool = True,
        record: frozenset[Record] = frozenset(),
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """Predicts the noise in latents [B, 4, h, w] at timesteps [B].

        Args:
            identity: False computes the base model's own attention, as with no tokens.
            record: what the sites record besides; ``localisation`` and ``attention`` in mode "add" only.
            added_cond_kwargs: SDXL's ``text_embeds`` and ``time_ids``.
        """
        if self.mode == "gated" and record & {"localisation", "attention"}:
            raise ValueError("the gated adapter is kept in its region by L_FAIR; it has no attention beside the text's")
        call = self._make_call(noisy, timesteps, conditions, identity, record)
        noise = self._run_unet(noisy, timesteps, conditions.text, added_cond_kwargs, {KEYWORD: call})
        return Prediction(
            noise,
            fair=_mean(call.fair),
            localisation=_mean(call.localisation),
            attention=self._mean_attention(call),
            features=tuple(call.features.values()) if "features" in record else None,
        )

    @torch.no_grad()
    def predict_base(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The noise that the model without adapter predicts, [B, 4, h, w], without gradients."""
        return self._run_unet(noisy, timesteps, text, added_cond_kwargs, None)

    def make_tokens(self, features: Tensor) -> Tensor:
        """Projects the encoder's features, [B, e] of a face or [B, L, e] of its patches, to tokens [B, T, D]."""
        return cast(Tensor, self.adapter.projection(features))

    def release(self) -> None:
        """Gives the UNet its own attention processors back; afterwards this module cannot be used."""
        for site in self._sites:
            for attention in self._attentions(site):
                attention.set_processor(attention.processor.original)
        for handle in self._handles:
            handle.remove()

    def _run_unet(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        added: Mapping[str, Tensor] | None,
        attention_kwargs: dict[str, Any] | None,
    ) -> Tensor:
        added_cond_kwargs = None if added is None else dict(added)
        output = self.unet(
            noisy, timesteps, text, cross_attention_kwargs=attention_kwargs, added_cond_kwargs=added_cond_kwargs
        )
        return cast(Tensor, output.sample)

    def _make_call(
        self, noisy: Tensor, timesteps: Tensor, conditions: Conditions, identity: bool, record: frozenset[Record]
    ) -> Call:
        mask, text_on = conditions.mask.detach().float(), conditions.text_on
        if mask.shape != (len(noisy), 1, *noisy.shape[-2:]):
            raise ValueError(f"the mask is {tuple(mask.shape)}, the latents are {tuple(noisy.shape)}")
        return Call(
            tokens=conditions.tokens if identity else None,
            masks=masks_by_halvings(mask, max(site.halvings for site in self._sites)),
            acts=(mask.amax((1, 2, 3)) > 0)[:, None, None],
            text_on=None if text_on is None else text_on[:, None, None],
            progress=progress_of(timesteps).expand(len(noisy))[:, None, None],
            latent=Grid(*noisy.shape[-2:]),
            weight=self._weight,
            record=record,
        )

    def _mean_attention(self, call: Call) -> Tensor | None:
        """The shares of the coarse sites, mean on the finest grid: [B, 1, h', w']."""
        if not call.shares:
            return None
        finest = call.latent.halved(min(site.halvings for site in self._sites))
        total = torch.zeros((), device=call.acts.device)
        for index, share in call.shares.items():
            grid = call.latent.halved(self._sites[index].halvings)
            coarse = share.view(len(share), 1, grid.height, grid.width)
            total = total + F.interpolate(coarse, (finest.height, finest.width), mode="bilinear")
        return total / len(call.shares)

    def _widths(self, site: Site) -> tuple[int, int]:
        _, attn2 = self._attentions(site)
        return attn2.inner_dim, attn2.cross_attention_dim

    def _attentions(self, site: Site) -> tuple[Any, Any]:
        """diffusers' ``attn1`` and ``attn2`` of a site."""
        block = self.unet.get_submodule(site.name)
        return block.get_submodule("attn1"), block.get_submodule("attn2")

    def _install_processors(self) -> None:
        """Puts the processors in: plain objects, so that the adapter's weights do not become the UNet's."""
        middle = _middle_stages(self._sites)
        finest = min(site.halvings for site in self._sites)
        edited = next(_unet_stage(site) for site in self._sites if site.level == "up")
        for site in self._sites:
            weights, (attn1, attn2) = self.adapter.site(site.index), self._attentions(site)
            if isinstance(attn2.processor, TrainedTextAttention):
                raise HostError("This UNet is being trained with already", "Release it first.")
            gate = None
            if isinstance(weights, GatedSiteAdapter):
                gate = TrainedGate(site, weights, self._powers[site.level])
                norm2 = self.unet.get_submodule(f"{site.name}.norm2")
                self._handles.append(norm2.register_forward_pre_hook(gate.before_norm2))
            attn1.set_processor(TrainedSelfAttention(attn1.processor, gate))
            attn2.set_processor(
                TrainedTextAttention(
                    attn2.processor,
                    site,
                    weights if isinstance(weights, SiteAdapter) else None,
                    self._powers[site.level],
                    gate=gate,
                    localised=_unet_stage(site) in middle,
                    coarse=site.halvings > finest,
                    edited=_unet_stage(site) == edited,
                )
            )


def _require_kind(adapter: Adapter, mode: Mode) -> None:
    for index in range(len(adapter.sites)):
        site = adapter.site(index)
        gated = isinstance(site, GatedSiteAdapter)
        foreign = isinstance(site, TextQuerySiteAdapter) or (isinstance(site, SiteAdapter) and site.text_to_weight)
        if gated != (mode == "gated") or foreign:
            raise HostError(
                f"An adapter of this kind cannot be trained in mode '{mode}'",
                "FaceChain-FACT adapters take 'gated', IP-Adapter's family and our own take 'add'.",
            )


def _unet_stage(site: Site) -> str:
    """The block of the UNet that a site is in: ``down_blocks.0`` to ``mid_block`` to ``up_blocks.3``."""
    found = re.match(r"(down|up)_blocks\.\d+|mid_block", site.name)
    assert found
    return found[0]


def _middle_stages(sites: list[Site]) -> set[str]:
    """The middle five of the UNet's stages with text attention: of SD1.5's seven; SDXL has just five."""
    order = {"down": 0, "middle": 1, "up": 2}
    stages = list(dict.fromkeys(_unet_stage(site) for site in sorted(sites, key=lambda site: order[site.level])))
    first = (len(stages) - _MIDDLE_STAGES) // 2
    return set(stages[first : first + _MIDDLE_STAGES])


def _mean(values: Mapping[int, Tensor]) -> Tensor | None:
    return torch.stack(list(values.values())).mean() if values else None
