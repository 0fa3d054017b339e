"""The automatic region of a face: its parsed parts at their weights, grown and feathered."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dp_adapter.core.regions.region_masks import grow_and_feather
from dp_adapter.core.types import Grid
from dp_adapter.session.scene import Mask

_FEATURES = ("brows", "eyes", "glasses", "nose", "mouth")
_AROUND = ("hair", "neck", "clothes", "background")


def face_mask(
    parts: Mapping[str, Mask], weights: Mapping[str, float], grow: float, feather: float, size: Grid
) -> Tensor:
    """The automatic region [1, h, w] of a face: its parts at their weights, grown and feathered."""
    grown = soften(fit_mask(torch.as_tensor(skin_mask(parts, weights)), size), grow, feather)
    return add_features(grown, parts, weights)


def skin_mask(parts: Mapping[str, Mask], weights: Mapping[str, float]) -> Mask:
    """The face's skin and ears, and hair, neck, clothes and background where they have a weight: [h, w]."""
    mask = parts["face"] * weights["face"] * weights["skin"]
    around = {name: weights[name] for name in _AROUND} | {"ears": weights["face"] * weights["ears"]}
    for name, weight in around.items():
        mask = np.maximum(mask, parts[name] * weight * (1 - parts["face"]))
    return mask.astype(np.float32)


def add_features(mask: Tensor, parts: Mapping[str, Mask], weights: Mapping[str, float]) -> Tensor:
    """The region [1, h, w] with brows, eyes, glasses, nose, mouth and ears at the face's weight times their own.

    They are set after growing, which would close a feature that was handed back to the text; where two overlap, as eyes
    and glasses do, the lower weight counts.
    """
    inner = {name: np.minimum(parts[name], parts["face"]) for name in _FEATURES} | {"ears": parts["ears"]}
    for name in sorted(inner, key=lambda part: -weights[part]):
        inside = fit_mask(torch.as_tensor(inner[name]), Grid(*mask.shape[-2:]))
        mask = mask * (1 - inside) + inside * weights["face"] * weights[name]
    return mask


def needs_surroundings(weights: Mapping[str, float]) -> bool:
    """Whether a region with these weights of parts reaches beyond the face, to parts that are anywhere in a picture."""
    return any(weights[name] for name in _AROUND)


def free_mask(parts: Mapping[str, Mask], weights: Mapping[str, float], size: Grid) -> Tensor | None:
    """How far each position inside the face's outline is left to the text: [1, h, w], or None for nowhere."""
    outline = fit_mask(torch.as_tensor(parts["face"]), size)[None]
    skin = torch.full_like(outline, weights["face"] * weights["skin"])
    free = outline * (1 - add_features(skin, parts, weights))
    return free if bool((free > 0).any()) else None


def fit_mask(mask: Tensor, size: Grid) -> Tensor:
    """[h, w] of any size -> this size, by area."""
    if mask.shape == (size.height, size.width):
        return mask.float()
    return torch.nn.functional.interpolate(mask[None, None], (size.height, size.width), mode="area")[0, 0]


def soften(mask: Tensor, grow: float, feather: float) -> Tensor:
    """[h, w] -> [1, h, w]; grow and feather in fractions of the region's size, the square root of its area."""
    side = float(mask.sum()) ** 0.5
    return grow_and_feather(mask, grow * side, feather * side)[None]
