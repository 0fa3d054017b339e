"""Text-only twins: what a row takes from the picture without the adapter.

Strict text region: outside the region a row follows its twin, so the background stays what it was. Free parts
(FreeCure, arXiv 2411.15277): parts of the face that are left to the text follow the twin's self-attention.

The host doubles the batch: the second half repeats the first one's latents and text with rows of kind ``text``. Rows
that show photos come behind both halves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.types import Site, Step


def mix_with_twins(output: Tensor, gate: Tensor | None) -> Tensor:
    """First half of the rows: ``gate * own + (1 - gate) * twin``; second half: unchanged.

    Args:
        output: [R, N, C], R rows with their twins in the second half.
        gate: [R, N] summed over identities, or None for 1 everywhere.
    """
    if gate is None:
        return output
    half = len(output) // 2
    own, twins = output[:half], output[half:]
    inside = gate[:half, :, None].to(output)  # [R / 2, N, 1]
    return torch.cat([torch.lerp(twins, own, inside.expand_as(own)), twins])


def mix_self_attention(cache: RegionCache, site: Site, step: Step, output: Tensor) -> Tensor:
    """A site's self-attention with its twin's outside strict regions and in free parts: [R, N, C] -> [R, N, C]."""
    paired = step.without_references()
    mixed = mix_with_twins(output[: len(paired.rows)], cache.own_share(paired, site.halvings, site.level))
    return torch.cat([mixed, output[len(paired.rows) :]]) if step.references else mixed


def mix_predictions(cache: RegionCache, step: Step, sample: Tensor) -> Tensor:
    """The UNet's output without the twins, which also stands outside a strict region: [R, c, h, w] -> [R / 2, c, h, w].

    Free parts are the row's own: they follow the twin's features, not its picture.
    """
    gate = cache.total(step, 0, "down") if cache.strict else None
    if gate is None:
        return sample[: len(sample) // 2]
    flat = sample.flatten(2).mT  # [R, h * w, c]
    return mix_with_twins(flat, gate).mT.reshape(sample.shape)[: len(sample) // 2]
