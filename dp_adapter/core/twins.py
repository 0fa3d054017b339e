"""Text-only twins: what a row takes from the picture without the adapter.

Strict text region: outside the region a row follows its twin, so the background stays what it was. Free parts
(FreeCure, arXiv 2411.15277): parts of the face that are left to the text follow the twin's self-attention.

Identity guidance (r): the prediction of a conditional row is ``twin + r * gate * (own - twin)``, and the unconditional
row has no identity. With a guidance scale s the sampler then follows ``u + s (t - u) + s r gate (i - t)``: the text's
direction and the identity's, each with a scale of its own, as in Composable Diffusion (arXiv 2206.01714).

The host adds rows of kind ``text`` behind the call's own, with the latents and texts of those that they repeat
(``Step.twins``). Rows that show photos come behind these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.types import Site, Step


def mix_with_twins(output: Tensor, gate: Tensor | None, twins: Sequence[int]) -> Tensor:
    """Rows that have a twin: ``gate * own + (1 - gate) * twin``; all others: unchanged.

    Args:
        output: [R, N, C], the twins last.
        gate: [R, N] summed over identities, or None for 1 everywhere.
        twins: numbers of the rows that these repeat.
    """
    if gate is None:
        return output
    first, last = twins[0], twins[-1] + 1
    own = slice(first, last) if last - first == len(twins) else list(twins)  # a list costs a copy to the device
    inside = gate[own, :, None].to(output)  # [T, N, 1]
    mixed = output.clone()
    mixed[own] = torch.lerp(output[len(output) - len(twins) :], output[own], inside.expand(-1, -1, output.shape[2]))
    return mixed


def mix_self_attention(cache: RegionCache, site: Site, step: Step, output: Tensor) -> Tensor:
    """A site's self-attention with its twin's outside strict regions and in free parts: [R, N, C] -> [R, N, C]."""
    paired = step.without_references()
    share = cache.own_share(paired, site.halvings, site.level)
    mixed = mix_with_twins(output[: len(paired.rows)], share, step.twins)
    return torch.cat([mixed, output[len(paired.rows) :]]) if step.references else mixed


def mix_predictions(cache: RegionCache, step: Step, sample: Tensor) -> Tensor:
    """The UNet's output without its T twins, which also stands outside a strict region: [R, c, h, w] -> [R - T, …].

    Free parts are the row's own: they follow the twin's features, not its picture.
    """
    rows = len(sample) - len(step.twins)
    gate = cache.total(step, 0, "down") if cache.strict else None
    if cache.guidance is not None:
        gate = cache.guidance * (sample.new_ones(len(sample), 1) if gate is None else gate)
    if gate is None:
        return sample[:rows]
    flat = sample.flatten(2).mT  # [R, h * w, c]
    return mix_with_twins(flat, gate.expand(-1, flat.shape[1]), step.twins).mT.reshape(sample.shape)[:rows]
