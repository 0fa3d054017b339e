"""The regions of a request → masks in picture space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dp_adapter.core.regions import box_mask, grow_and_feather
from dp_adapter.core.types import Grid
from dp_adapter.identity.encoders import Encoders
from dp_adapter.session.photos import Photos
from dp_adapter.session.scene import Mask, Picture, Scene
from dp_adapter.settings import Region, Settings

_FEATURES = ("brows", "eyes", "nose", "mouth")
_AROUND = ("hair", "neck", "clothes", "background")


@dataclass(frozen=True)
class Area:
    """Where one person acts.

    Attributes:
        mask: [1, h, w] in [0, 1], or None for the whole picture.
        weight: factor on the person's weight.
        source: where the mask comes from, in words.
        known: whether it comes from something that says where the face is.
    """

    mask: Tensor | None
    weight: float
    source: str
    known: bool

    @property
    def coverage(self) -> float:
        return 1.0 if self.mask is None else float(self.mask.mean())


class Areas:
    """Makes masks for one session."""

    def __init__(self, photos: Photos, encoders: Encoders) -> None:
        self._photos = photos
        self._encoders = encoders

    def of(self, settings: Settings, scene: Scene, identity: int) -> Area:
        """The area of one person: the union of their regions, each with its weight."""
        mine = [region for region in settings.regions if region.identity == identity] or [Region(identity=identity)]
        drawn = [self._one(region, settings, scene, identity) for region in mine]
        strongest = max(area.weight for area in drawn)
        if len(drawn) == 1 or strongest == 0:
            return drawn[0]
        size = Grid(scene.height, scene.width)
        shares = [_full(area.mask, size) * (area.weight / strongest) for area in drawn]
        union = torch.stack(shares).amax(0)
        sources = " and ".join(dict.fromkeys(area.source for area in drawn))
        return Area(union, strongest, sources, all(area.known for area in drawn))

    def _one(self, region: Region, settings: Settings, scene: Scene, identity: int) -> Area:
        size = Grid(scene.height, scene.width)
        if region.kind == "full":
            return Area(None, region.weight, "the whole picture, as chosen", known=True)
        if region.kind == "box":
            assert region.box is not None
            mask = box_mask(region.box.x0, region.box.y0, region.box.x1, region.box.y1, size)
            return Area(_softened(mask, region.grow or 0, region.feather or 0), region.weight, "a box", known=True)
        if region.kind == "mask":
            picture = self._photos.read(region.mask, f"regions[{settings.regions.index(region)}].mask")
            mask = _fitted(torch.as_tensor(_grey(picture)), size)
            softened = _softened(mask, region.grow or 0, region.feather or 0)
            return Area(softened, region.weight, "a drawn mask", known=True)
        return self._automatic(region, settings, scene, identity)

    def _automatic(self, region: Region, settings: Settings, scene: Scene, identity: int) -> Area:
        tracking = settings.tracking
        grow = tracking.grow if region.grow is None else region.grow
        feather = tracking.feather if region.feather is None else region.feather
        size = Grid(scene.height, scene.width)
        if scene.inpaint is not None:
            mask = _fitted(torch.as_tensor(scene.inpaint), size)
            return Area(mask[None], region.weight, "the inpaint mask", known=True)
        if scene.init is not None and "init" in tracking.sources:
            faces = self._photos.faces(scene.init, self._encoders.yunet)
            if identity < len(faces):
                # One person is the main one of the picture; several are counted from the left.
                main = max(range(len(faces)), key=lambda i: faces[i].size)
                place = main if settings.identities == 1 else identity
                parts = self._encoders.parser.parse(scene.init, faces[place])
                weights = settings.parts.weights()
                grown = _softened(_fitted(torch.as_tensor(skin_and_around(parts, weights)), size), grow, feather)
                words = f"face {place} of the init picture, counted from the left"
                return Area(with_features(grown, parts, weights), region.weight, words, known=True)
        return Area(None, region.weight, "the whole picture, since nothing says where the face will be", known=False)


def skin_and_around(parts: Mapping[str, Mask], weights: Mapping[str, float]) -> Mask:
    """The face's skin, and hair, neck, clothes and background where they have a weight: [h, w] of the parts' masks."""
    mask = parts["face"] * weights["face"] * weights["skin"]
    for name in _AROUND:
        mask = np.maximum(mask, parts[name] * weights[name] * (1 - parts["face"]))
    return mask.astype(np.float32)


def with_features(mask: Tensor, parts: Mapping[str, Mask], weights: Mapping[str, float]) -> Tensor:
    """The region [1, h, w] with brows, eyes, nose and mouth at the face's weight times their own.

    They are set after growing, which would close a feature that was handed back to the text.
    """
    for name in _FEATURES:
        inside = _fitted(torch.as_tensor(np.minimum(parts[name], parts["face"])), Grid(*mask.shape[-2:]))
        mask = mask * (1 - inside) + inside * weights["face"] * weights[name]
    return mask


def _grey(picture: Picture) -> Mask:
    return picture.astype(np.float32).mean(-1) / 255


def _fitted(mask: Tensor, size: Grid) -> Tensor:
    """[h, w] of any size -> the picture's size, by area."""
    return torch.nn.functional.interpolate(mask[None, None], (size.height, size.width), mode="area")[0, 0]


def _softened(mask: Tensor, grow: float, feather: float) -> Tensor:
    """[h, w] -> [1, h, w]; grow and feather in fractions of the region's size, the square root of its area."""
    side = float(mask.sum()) ** 0.5
    return grow_and_feather(mask, grow * side, feather * side)[None]


def _full(mask: Tensor | None, size: Grid) -> Tensor:
    return torch.ones(1, size.height, size.width) if mask is None else mask
