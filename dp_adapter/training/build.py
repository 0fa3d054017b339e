"""The trained half: a new adapter for a base, or one from a file; which of its weights a stage trains; writing it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter, SiteAdapter
from dp_adapter.core.blend import FeatureBlending, TextConsistency
from dp_adapter.core.projection import FaceProjection, Resampler
from dp_adapter.core.types import Site
from dp_adapter.errors import TrainingError
from dp_adapter.hosts.sites import Base
from dp_adapter.training.config import AdapterPlan, EncoderName, StageKind
from dp_adapter.weights import fact, own
from dp_adapter.weights.formats import read as read_checkpoint

def new(plan: AdapterPlan, sites: list[Site], context: int, features: tuple[int, ...], seed: int) -> Adapter:
    """An untrained adapter, the same numbers for the same seed.

    Args:
        context: width D of the text context; features: shape of an encoder's output, [e] or [L, e].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _gated(plan, sites, context, features) if plan.gated else _added(plan, sites, context, features)


def _added(plan: AdapterPlan, sites: list[Site], context: int, features: tuple[int, ...]) -> Adapter:
    projection = FaceProjection(features[-1], 2 * features[-1], plan.tokens, context)
    with torch.no_grad():
        # A face's vector has length 1: times the root of its width each entry has variance 1, as the layer expects.
        projection.get_parameter("proj.0.weight").mul_(features[-1] ** 0.5)
    built: list[SiteAdapter | GatedSiteAdapter] = []
    for site in sites:
        text = TextConsistency(context, site.channels, plan.tca_rank) if plan.tca_rank else None
        gate = FeatureBlending(site.channels, plan.ffb_rank) if plan.ffb else None
        built.append(SiteAdapter(context, site.channels, text, gate))
    return Adapter(projection, built)


def _gated(plan: AdapterPlan, sites: list[Site], context: int, features: tuple[int, ...]) -> Adapter:
    with torch.device("meta"):
        state = resampler_state(features[-1], plan.tokens, context)
    projection = Resampler.like(state)
    torch.nn.init.normal_(projection.latents, std=projection.latents.shape[-1] ** -0.5)
    return Adapter(projection, [GatedSiteAdapter(context, site.channels, 4 * site.channels) for site in sites])


def resampler_state(features: int, tokens: int, context: int) -> dict[str, Tensor]:
    """Tensors of the shapes of FaceChain-FACT's resampler (released weights: width 1024, depth 4, 12 heads of 64)."""
    width, inner, depth = 1024, 768, 4
    state = {
        "latents": torch.empty(1, tokens, width),
        "proj_in.weight": torch.empty(width, features),
        "proj_out.weight": torch.empty(context, width),
    }
    for layer in range(depth):
        state[f"layers.{layer}.0.to_q.weight"] = torch.empty(inner, width)
        state[f"layers.{layer}.1.1.weight"] = torch.empty(4 * width, width)
    return state


def start_from_text(adapter: Adapter, unet: nn.Module, sites: list[Site]) -> None:
    """Begins the identity's keys and values as the text's.

    Source: tencent-ailab/IP-Adapter@62e4af9 ``tutorial_train_faceid.py``.
    """
    for site in sites:
        weights, attention = adapter.site(site.index), unet.get_submodule(site.name + ".attn2")
        if isinstance(weights, SiteAdapter):
            for name in ("to_k", "to_v"):
                with torch.no_grad():
                    weights.get_parameter(f"{name}.weight").copy_(attention.get_parameter(f"{name}.weight"))


def start_from_file(adapter: Adapter, path: Path) -> frozenset[StageKind]:
    """Copies what a checkpoint and the adapter have in common.

    Returns:
        The parts that the checkpoint brings, named by the stage that trains them.

    Raises:
        WeightsError: the file cannot be read; TrainingError: its shapes are others.
    """
    state = read_checkpoint(path).adapter.state_dict()
    own_state = adapter.state_dict()
    wrong = [key for key, value in state.items() if key not in own_state or own_state[key].shape != value.shape]
    missing = [key for key in own_state if key not in state and part_of(key) == "iea"]
    if wrong or missing:
        have = tuple(state[wrong[0]].shape) if wrong else "missing"
        raise TrainingError(
            f"{path.name} does not fit: {(wrong or missing)[0]} is {have} in the file",
            "Set adapter.encoder, tokens, tca_rank and ffb to the file's (dp-adapter inspect), or leave start out.",
        )
    adapter.load_state_dict(state, strict=False)
    return frozenset(part_of(key) for key in state)


def part_of(name: str) -> StageKind:
    """Which part of the method a parameter belongs to, named by the stage that trains it first."""
    pieces = name.split(".")
    if pieces[0] == "sites" and len(pieces) > 2:
        return "tca" if pieces[2] == "text" else "ffb" if pieces[2] == "blending" else "iea"
    return "iea"


def trained_by(adapter: Adapter, kind: StageKind) -> dict[str, nn.Parameter]:
    """The parameters of a stage by name: its own part's, or all of them in the joint stage."""
    return {name: one for name, one in adapter.named_parameters() if kind in ("ffb", part_of(name))}


def view(adapter: Adapter, parts: frozenset[StageKind]) -> Adapter:
    """The same weights without the parts that are neither trained yet nor in this stage: they would compute nothing."""
    sites: list[SiteAdapter | GatedSiteAdapter] = []
    for index in range(len(adapter.sites)):
        full = adapter.site(index)
        if isinstance(full, SiteAdapter):
            with torch.device("meta"):
                site = SiteAdapter(full.context, full.width)
            site.to_k, site.to_v = full.to_k, full.to_v
            site.text = full.text if "tca" in parts else None
            site.blending = full.blending if "ffb" in parts else None
            sites.append(site)
        else:
            sites.append(full)
    return Adapter(adapter.projection, sites)


def save(
    path: Path, adapter: Adapter, base: Base, encoder: EncoderName, sites: list[Site], training: Mapping[str, object]
) -> None:
    """Writes an adapter as the extension reads it: our own format, or FACT's keys for a gated one."""
    partial = path.with_suffix(".partial")
    if isinstance(adapter.projection, FaceProjection):
        own.save(partial, adapter, base, encoder, training)
    else:
        fact.save(partial, adapter, [site.name for site in sites], training)
    partial.replace(path)
