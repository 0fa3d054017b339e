"""This project's own checkpoints: safetensors of ``Adapter.state_dict()`` with metadata that says what it is.

Metadata: ``format`` = ``dp_adapter``, ``version``, ``base``, ``encoder``, ``kind`` and ``training`` (JSON facts), and
``guidance`` where it is to act with an identity guidance of its own. The kind says what makes the tokens; the keys of
the sites say how they act.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from torch import nn

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter, SiteAdapter
from dp_adapter.core.blend import FeatureBlending, TextConsistency
from dp_adapter.core.latent_gate import LatentGate
from dp_adapter.core.projection import FaceProjection, Resampler, State, strip_prefix
from dp_adapter.errors import WeightsError
from dp_adapter.naming import shorten
from dp_adapter.weights.build_modules import build_module, build_projection
from dp_adapter.weights.checkpoint import SITES, Base, Checkpoint, Encoder
from dp_adapter.weights.families.facechain_fact import build_gated_site, make_resampled_tokens
from dp_adapter.weights.families.ip_adapter import make_face_tokens
from dp_adapter.weights.files import WeightFile, require_version

VERSION = 1
FORMAT = "dp_adapter"
FACE, PATCHES = "face-projection", "patch-resampler"
KINDS = (FACE, PATCHES)
MOST_GUIDANCE = 2.0
CHANNELS = 4
"""Of SD1.5's and SDXL's latents."""


def recognise(file: WeightFile) -> bool:
    return file.metadata.get("format") == FORMAT


def save(
    path: Path,
    adapter: Adapter,
    base: Base,
    encoder: Encoder,
    training: Mapping[str, object],
    guidance: float | None = None,
) -> None:
    """Writes an adapter whose projection is a FaceProjection or, for patches of a face, a Resampler.

    Args:
        encoder: network whose embedding or patches the projection takes.
        guidance: identity guidance that it acts with where a request leaves it open; None for none.
        training: facts to keep with the weights (steps, data, date); must be JSON.
    """
    from safetensors.torch import save_file

    assert isinstance(adapter.projection, FaceProjection | Resampler)
    assert len(adapter.sites) == SITES[base]
    kind = FACE if isinstance(adapter.projection, FaceProjection) else PATCHES
    metadata = {"format": FORMAT, "version": str(VERSION), "base": base, "kind": kind, "encoder": encoder}
    if guidance is not None:
        metadata["guidance"] = f"{guidance:g}"
    tensors = {key: value.detach().contiguous().cpu() for key, value in adapter.state_dict().items()}
    save_file(tensors, str(path), metadata=metadata | {"training": json.dumps(dict(training))})


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    base, encoder = _read_metadata(file)
    count = len({key.split(".")[1] for key in file.tensors if key.startswith("sites.")})
    if count != SITES[base]:
        raise WeightsError(f"{file.path.name} is for {base} but has {count} of {SITES[base]} layers", "It is damaged.")
    patches = file.metadata["kind"] == PATCHES
    sites = [_read_site(strip_prefix(file.tensors, f"sites.{index}."), index, file) for index in range(SITES[base])]
    net, tokens, width = _read_patch_projection(file) if patches else _read_face_projection(file)
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base=base,
        adapter=Adapter(net, sites, _read_gate(file)),
        encoders=(encoder,),
        recipe=make_resampled_tokens if patches else make_face_tokens,
        tokens_per_photo=tokens,
        features_width={encoder: width},
        combine="concatenate" if patches else "average",
        mode="gated" if isinstance(sites[0], GatedSiteAdapter) else "add",
        guidance=_read_guidance(file),
        metadata=file.metadata,
    )


def _read_face_projection(file: WeightFile) -> tuple[nn.Module, int, int]:
    """The projection of a face embedding, its number of tokens and the embedding's width."""
    net = build_projection(FaceProjection.like, strip_prefix(file.tensors, "projection."), file)
    tokens = file.tensors["projection.proj.2.weight"].shape[0] // net.norm.normalized_shape[0]
    return net, tokens, file.tensors["projection.proj.0.weight"].shape[1]


def _read_patch_projection(file: WeightFile) -> tuple[nn.Module, int, int]:
    """The same of the patches of a face."""
    net = build_projection(Resampler.like, strip_prefix(file.tensors, "projection."), file)
    return net, net.latents.shape[1], net.proj_in.in_features


def _read_metadata(file: WeightFile) -> tuple[Base, Encoder]:
    facts = file.metadata
    require_version(file, VERSION)
    for key, known in (("base", get_args(Base)), ("encoder", get_args(Encoder)), ("kind", KINDS)):
        if facts.get(key) not in known:
            raise WeightsError(f"{file.path.name}: its metadata says {key} '{facts.get(key)}', known are {known}")
    base: Base = next(name for name in get_args(Base) if name == facts["base"])
    encoder: Encoder = next(name for name in get_args(Encoder) if name == facts["encoder"])
    return base, encoder


def _read_gate(file: WeightFile) -> LatentGate | None:
    tensors = strip_prefix(file.tensors, "gate.").items()
    state = {key: value.float() if value.is_floating_point() else value for key, value in tensors}
    if not state:
        return None
    gate = build_module(LatentGate.like, state, file, "the gate")
    if gate.channels != CHANNELS:
        raise WeightsError(
            f"{file.path.name}: its gate reads latents of {gate.channels} channels, not of {CHANNELS}", "It is damaged."
        )
    return gate


def _read_guidance(file: WeightFile) -> float | None:
    """The identity guidance that the file asks for, within what a request may ask for."""
    text = file.metadata.get("guidance")
    if text is None:
        return None
    try:
        guidance = float(text)
    except ValueError:
        guidance = -1.0
    if not 0 < guidance <= MOST_GUIDANCE:  # not a number, too
        raise WeightsError(f"{file.path.name}: its metadata says guidance '{shorten(text, 20)}'", "It is damaged.")
    return guidance


def _read_site(state: State, index: int, file: WeightFile) -> SiteAdapter | GatedSiteAdapter:
    if _has(state, "alpha_"):
        return build_gated_site(state, index, file)
    return build_module(_site_like, state, file, f"layer {index}")


def _site_like(state: State) -> SiteAdapter:
    width, context = state["to_k.weight"].shape
    text = TextConsistency(context, width, len(state["text.k_down.weight"])) if _has(state, "text.") else None
    blending = FeatureBlending(width, len(state["blending.project_v.weight"])) if _has(state, "blending.") else None
    return SiteAdapter(context, width, text, blending)


def _has(state: State, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in state)
