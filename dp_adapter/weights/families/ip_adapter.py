"""IP-Adapter and FaceID files: ``image_proj.*`` and ``ip_adapter.N.to_{k,v}_ip.weight``; N odd; down, up, middle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from dp_adapter.core import projection
from dp_adapter.core.adapter import Adapter, LowRank, SiteAdapter
from dp_adapter.core.projection import strip_prefix
from dp_adapter.core.types import Features, Tokens
from dp_adapter.errors import WeightsError
from dp_adapter.weights.build_modules import build_low_rank, build_projection, build_site
from dp_adapter.weights.checkpoint import SITES, Base, Checkpoint, Encoder, Recipe, RecipeOptions, Variant, require
from dp_adapter.weights.files import WeightFile

# Of MIP-Adapter, StoryMaker and ConsistentID, which have all of IP-Adapter's layers and more.
_RELATIVES = (
    "ip_adapter.1.text_to_weight.weight",
    "image_proj.bg_embed",
    "FacialEncoder.visual_projection.latents",
)
_LORA = re.compile(r"(\d+)\.(to_[qkv]|to_out)_lora\.(down|up)\.weight")
_PORTRAIT_TOKENS = 16  # FaceID itself has 4; both project with the same layers


class _Projection(Protocol):
    def __call__(self, *features: Tensor) -> Tensor: ...


def _projection_state(file: WeightFile) -> dict[str, Tensor]:
    return strip_prefix(file.tensors, "image_proj.")


def _has(file: WeightFile, *keys: str) -> bool:
    if any(key in file.tensors for key in _RELATIVES):
        return False
    return "ip_adapter.1.to_k_ip.weight" in file.tensors and all(f"image_proj.{key}" in file.tensors for key in keys)


def is_standard(file: WeightFile) -> bool:
    return _has(file, "proj.weight", "norm.weight")


def is_full(file: WeightFile) -> bool:
    return _has(file, "proj.0.weight", "proj.2.weight", "proj.3.weight")


def is_face_plus(file: WeightFile) -> bool:
    return _has(file, "proj.0.weight", "norm.weight", "perceiver_resampler.proj_in.weight")


def is_face(file: WeightFile) -> bool:
    return _has(file, "proj.0.weight", "norm.weight") and not is_face_plus(file)


def is_portrait(file: WeightFile) -> bool:
    has_lora = any("_lora." in key for key in file.tensors)
    return is_face(file) and not has_lora and _count_face_tokens(file) >= _PORTRAIT_TOKENS


def _is_resampler(file: WeightFile) -> bool:
    return _has(file, "latents", "proj_in.weight", "layers.0.0.to_q.weight")


def is_sequence(file: WeightFile) -> bool:
    """A resampler over one 512-d face embedding, not over a CLIP sequence (whose widths are 1280 and 1664)."""
    return _is_resampler(file) and file.tensors["image_proj.proj_in.weight"].shape[1] == 512


def is_plus(file: WeightFile) -> bool:
    return _is_resampler(file) and not is_sequence(file)


def _count_face_tokens(file: WeightFile) -> int:
    return file.tensors["image_proj.proj.2.weight"].shape[0] // file.tensors["image_proj.norm.weight"].shape[0]


def read_standard(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(projection.ImageProjection.like, _projection_state(file), file)
    tokens = net.proj.out_features // net.norm.normalized_shape[0]
    widths: dict[Encoder, int] = {"clip-embeds": net.proj.in_features}
    return replace(_make_checkpoint(file, family, title, net, _make_image_tokens, widths, tokens), crop="photo")


def read_full(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(projection.FullProjection.like, _projection_state(file), file)
    width = file.tensors["image_proj.proj.0.weight"].shape[1]
    return _make_checkpoint(file, family, title, net, _make_hidden_tokens, {"clip-hidden": width}, 257)


def read_plus(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(projection.Resampler.like, _projection_state(file), file)
    widths: dict[Encoder, int] = {"clip-hidden": net.proj_in.in_features}
    models = {"plus-face": Variant(), "plus": Variant(crop="photo"), "composition": Variant(crop="photo")}
    return _make_checkpoint(file, family, title, net, _make_hidden_tokens, widths, net.latents.shape[1], models)


def read_face(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(projection.FaceProjection.like, _projection_state(file), file)
    width = file.tensors["image_proj.proj.0.weight"].shape[1]
    return _make_checkpoint(file, family, title, net, make_face_tokens, {"arcface": width}, _count_face_tokens(file))


def read_portrait(file: WeightFile, family: str, title: str) -> Checkpoint:
    return replace(read_face(file, family, title), combine="concatenate")


def read_sequence(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(projection.Resampler.like, _projection_state(file), file)
    widths: dict[Encoder, int] = {"arcface-raw": net.proj_in.in_features}
    models = {"instantid": Variant("antelopev2", identity_net=True), "faceid-portrait-unnorm": Variant()}
    checkpoint = _make_checkpoint(file, family, title, net, _make_sequence_tokens, widths, net.latents.shape[1], models)
    return replace(checkpoint, combine="concatenate")


def read_face_plus(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(projection.FacePlusProjection.like, _projection_state(file), file)
    widths: dict[Encoder, int] = {
        "arcface": file.tensors["image_proj.proj.0.weight"].shape[1],
        "clip-hidden": net.perceiver_resampler.proj_in.in_features,
    }
    # On SDXL only v2 was published.
    models = {"faceid-plusv2": Variant()} | (
        {"faceid-plus": Variant(shortcut=False)} if _base_by_layers(file) == "sd15" else {}
    )
    return _make_checkpoint(file, family, title, net, _make_variant_tokens, widths, _count_face_tokens(file), models)


def _make_checkpoint(
    file: WeightFile,
    family: str,
    title: str,
    net: nn.Module,
    recipe: Recipe,
    widths: Mapping[Encoder, int],
    tokens: int,
    models: Mapping[str, Variant] | None = None,
) -> Checkpoint:
    adapter = Adapter(net, _read_sites(file))
    base = _base_by_layers(file)
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base=base,
        adapter=adapter,
        encoders=tuple(widths),
        recipe=recipe,
        tokens_per_photo=tokens,
        features_width=widths,
        lora=read_lora(file, base),
        models=models or {},
    )


def _make_image_tokens(adapter: Adapter, features: Features, _options: RecipeOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, projection.ImageProjection)
    x = require(features.image_embeds, "CLIP image embeddings", net.proj.in_features)
    return _project(net, x, uncond=torch.zeros_like(x))


def _make_hidden_tokens(adapter: Adapter, features: Features, _options: RecipeOptions) -> Tokens:
    net = adapter.projection
    width = net.proj_in.in_features if isinstance(net, projection.Resampler) else _input_width(net)
    x = require(features.clip_hidden, "CLIP hidden states", width)
    zero_pixels = require(features.clip_hidden_uncond, "CLIP hidden states of a black picture", width)
    return _project(net, x, uncond=zero_pixels.expand(len(x), -1, -1))


def make_face_tokens(adapter: Adapter, features: Features, _options: RecipeOptions) -> Tokens:
    """Tokens of a projection from a face embedding; uncond is the projection of zeros."""
    net = adapter.projection
    x = require(features.faceid, "face embeddings", _input_width(net))
    return _project(net, x, uncond=torch.zeros_like(x))


def _make_sequence_tokens(adapter: Adapter, features: Features, _options: RecipeOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, projection.Resampler)
    x = require(features.faceid, "raw face embeddings", net.proj_in.in_features)
    x = x if x.ndim == 3 else x[:, None]  # [n, 1, 512]
    return _project(net, x, uncond=torch.zeros_like(x))


def _make_variant_tokens(adapter: Adapter, features: Features, options: RecipeOptions) -> Tokens:
    net = adapter.projection
    assert isinstance(net, projection.FacePlusProjection)
    return make_face_plus_tokens(net, features, options.shortcut, options.structure)


def make_face_plus_tokens(
    net: projection.FacePlusProjection, features: Features, shortcut: bool, structure: float
) -> Tokens:
    """Tokens of a face embedding and CLIP's hidden states; uncond takes zeros and a black picture the same way."""
    width = net.perceiver_resampler.proj_in.in_features
    face = require(features.faceid, "face embeddings", _input_width(net))
    hidden = require(features.clip_hidden, "CLIP hidden states", width)
    zero_pixels = require(features.clip_hidden_uncond, "CLIP hidden states of a black picture", width)
    choice = (shortcut, structure)
    cond = net(face, hidden, *choice)
    uncond = net(torch.zeros_like(face), zero_pixels.expand(len(face), -1, -1), *choice)
    return Tokens(cond.flatten(0, -2), uncond.flatten(0, -2))


def _project(net: _Projection, x: Tensor, uncond: Tensor) -> Tokens:
    """Photos one after another: [..., T, D] -> [n * T, D]."""
    return Tokens(net(x).flatten(0, -2), net(uncond).flatten(0, -2))


def _input_width(net: nn.Module) -> int:
    linear = net.get_submodule("proj.0")
    assert isinstance(linear, nn.Linear)
    return linear.in_features


def _base_by_layers(file: WeightFile) -> Base:
    """SD1.5 has 16 text attentions, SDXL 70; widths do not matter."""
    count = sum(key.endswith(".to_k_ip.weight") for key in file.tensors)
    for base, sites in SITES.items():
        if count == sites:
            return base
    raise WeightsError(
        f"{file.path.name} has {count} attention layers; SD1.5 adapters have 16 and SDXL adapters 70",
        "It is incomplete, or made for another base model.",
    )


def _read_sites(file: WeightFile) -> list[SiteAdapter]:
    layers = strip_prefix(file.tensors, "ip_adapter.")
    context = _token_width(file)
    sites: list[SiteAdapter] = []
    for index in range(SITES[_base_by_layers(file)]):
        number = 2 * index + 1
        k, v = layers.get(f"{number}.to_k_ip.weight"), layers.get(f"{number}.to_v_ip.weight")
        if k is None or v is None or k.shape != v.shape or k.ndim != 2:
            raise WeightsError(f"{file.path.name}: layer {number} lacks a matching to_k_ip and to_v_ip")
        if k.shape[1] != context:
            raise WeightsError(
                f"{file.path.name}: layer {number} takes tokens of width {k.shape[1]}, its image projection makes "
                f"{context}",
                "The file was put together from different models.",
            )
        sites.append(build_site(k, v))
    return sites


def _token_width(file: WeightFile) -> int:
    """Width D of the tokens that the projection makes: that of its last normalisation."""
    names = ("image_proj.norm.weight", "image_proj.norm_out.weight", "image_proj.proj.3.weight")
    return next(file.tensors[name].shape[0] for name in names if name in file.tensors)


def read_lora(file: WeightFile, base: Base) -> tuple[LowRank, ...]:
    """The LoRA inside a file; empty where there is none. Raises WeightsError where it is incomplete."""
    layers = strip_prefix(file.tensors, "ip_adapter.")
    found: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in layers.items():
        if match := _LORA.fullmatch(key):
            found.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    expected = 8 * SITES[base]  # q, k, v and out of every attn1 and attn2
    if found and (len(found) != expected or any(len(pair) != 2 for pair in found.values())):
        raise WeightsError(f"{file.path.name}: its LoRA has {len(found)} of {expected} layers", "It is incomplete.")
    return tuple(build_low_rank(layer, name, pair["down"], pair["up"]) for (layer, name), pair in found.items())
