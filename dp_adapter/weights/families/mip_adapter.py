"""MIP-Adapter files (arXiv 2409.17920): IP-Adapter's layout and one layer more a site, ``N.text_to_weight.weight``.

Source: hqhQAQ/MIP-Adapter@ef01c84 ``ip_adapter/ip_adapter_multi.py``. Of several photos of one person the projected
tokens are averaged, not what the encoder saw. Unconditional tokens are the projection of zeros, in the plus version
that of CLIP's hidden states of black pixels, as IP-Adapter's own.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.types import Features, Tokens
from dp_adapter.errors import WeightsError
from dp_adapter.weights.build_modules import assign_weights
from dp_adapter.weights.checkpoint import Checkpoint, Recipe, RecipeOptions
from dp_adapter.weights.families import ip_adapter
from dp_adapter.weights.files import WeightFile

_LAYER = "ip_adapter.{}.text_to_weight.weight"


def is_standard(file: WeightFile) -> bool:
    return _has(file, "proj.weight", "norm.weight")


def is_plus(file: WeightFile) -> bool:
    return _has(file, "latents", "proj_in.weight", "layers.0.0.to_q.weight")


def _has(file: WeightFile, *keys: str) -> bool:
    layers = _LAYER.format(1) in file.tensors and "ip_adapter.1.to_k_ip.weight" in file.tensors
    return layers and all(f"image_proj.{key}" in file.tensors for key in keys)


def read_standard(file: WeightFile, family: str, title: str) -> Checkpoint:
    return _share_by_words(file, ip_adapter.read_standard(file, family, title))


def read_plus(file: WeightFile, family: str, title: str) -> Checkpoint:
    return _share_by_words(file, replace(ip_adapter.read_plus(file, family, title), models={}))


def _share_by_words(file: WeightFile, checkpoint: Checkpoint) -> Checkpoint:
    for index in range(len(checkpoint.adapter.sites)):
        site = checkpoint.adapter.site(index)
        assert isinstance(site, SiteAdapter)
        site.text_to_weight = _read_layer(file, 2 * index + 1, site.width)
    # Photos come one by one, so that the recipe can average their tokens.
    recipe = _average_photos(checkpoint.recipe, checkpoint.tokens_per_photo)
    return replace(checkpoint, recipe=recipe, combine="concatenate", sharing="words", crop="photo")


def _read_layer(file: WeightFile, number: int, width: int) -> nn.Linear:
    weight = file.tensors.get(_LAYER.format(number))
    if weight is None or weight.shape != (1, width):
        raise WeightsError(f"{file.path.name}: layer {number} lacks a text_to_weight of {width} channels")
    return assign_weights(lambda _: nn.Linear(width, 1, bias=False), {"weight": weight})


def _average_photos(recipe: Recipe, count: int) -> Recipe:
    """The recipe with the photos' tokens [n * T, D] averaged: [T, D]."""

    def averaged(adapter: Adapter, features: Features, options: RecipeOptions) -> Tokens:
        tokens = recipe(adapter, features, options)
        return Tokens(_mean(tokens.cond, count), _mean(tokens.uncond, count))

    return averaged


def _mean(tokens: Tensor, count: int) -> Tensor:
    return tokens.reshape(-1, count, tokens.shape[-1]).mean(0)
