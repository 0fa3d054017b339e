"""The regions of a request → masks in picture space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dp_adapter.core.regions import box_mask, grow_and_feather
from dp_adapter.core.types import Grid
from dp_adapter.identity.encoders import Encoders
from dp_adapter.session.photos import Photos
from dp_adapter.session.scene import Crop, Mask, Picture, Scene
from dp_adapter.settings import Region, Settings

_FEATURES = ("brows", "eyes", "glasses", "nose", "mouth")
_AROUND = ("hair", "neck", "clothes", "background")


@dataclass(frozen=True)
class Area:
    """Where one person acts.

    Attributes:
        mask: [S, h, w] in [0, 1], S = 1 or one for each picture of the batch; None for the whole picture.
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
        """The area of one person, for each init picture: the union of their regions, each with its weight."""
        if len(scene.inits) > 1:
            single = [self.of(settings, replace(scene, inits=(init,)), identity) for init in scene.inits]
            return _batched(single, Grid(scene.height, scene.width))
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
            mask = box_mask(*_in_crop((region.box.x0, region.box.y0, region.box.x1, region.box.y1), scene.crop), size)
            return Area(_softened(mask, region.grow or 0, region.feather or 0), region.weight, "a box", known=True)
        if region.kind == "mask":
            picture = self._photos.read(region.mask, f"regions[{settings.regions.index(region)}].mask")
            mask = _fitted(torch.as_tensor(_cropped(_grey(picture), scene.crop)), size)
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
        if scene.inits and "init" in tracking.sources:
            (init,) = scene.inits
            faces = self._photos.faces(init, self._encoders.yunet)
            if identity < len(faces):
                # One person is the main one of the picture; several are counted from the left.
                main = max(range(len(faces)), key=lambda i: faces[i].size)
                place = main if settings.identities == 1 else identity
                parts = self._encoders.parser.parse(init, faces[place])
                weights = settings.parts.weights()
                grown = _softened(_fitted(torch.as_tensor(skin_and_around(parts, weights)), size), grow, feather)
                words = f"face {place} of the init picture, counted from the left"
                return Area(with_features(grown, parts, weights), region.weight, words, known=True)
        return Area(None, region.weight, "the whole picture, since nothing says where the face will be", known=False)


def skin_and_around(parts: Mapping[str, Mask], weights: Mapping[str, float]) -> Mask:
    """The face's skin and ears, and hair, neck, clothes and background where they have a weight: [h, w]."""
    mask = parts["face"] * weights["face"] * weights["skin"]
    around = {name: weights[name] for name in _AROUND} | {"ears": weights["face"] * weights["ears"]}
    for name, weight in around.items():
        mask = np.maximum(mask, parts[name] * weight * (1 - parts["face"]))
    return mask.astype(np.float32)


def with_features(mask: Tensor, parts: Mapping[str, Mask], weights: Mapping[str, float]) -> Tensor:
    """The region [1, h, w] with brows, eyes, glasses, nose, mouth and ears at the face's weight times their own.

    They are set after growing, which would close a feature that was handed back to the text; where two overlap, as eyes
    and glasses do, the lower weight counts.
    """
    inner = {name: np.minimum(parts[name], parts["face"]) for name in _FEATURES} | {"ears": parts["ears"]}
    for name in sorted(inner, key=lambda part: -weights[part]):
        inside = _fitted(torch.as_tensor(inner[name]), Grid(*mask.shape[-2:]))
        mask = mask * (1 - inside) + inside * weights["face"] * weights[name]
    return mask


def _batched(areas: Sequence[Area], size: Grid) -> Area:
    """One area for a batch whose pictures each have their own."""
    first = areas[0]
    if all(area.mask is first.mask for area in areas):
        return first
    masks = torch.cat([_full(area.mask, size) for area in areas])
    sources = "; ".join(dict.fromkeys(area.source for area in areas))
    return Area(masks, first.weight, sources, all(area.known for area in areas))


def _in_crop(box: tuple[float, float, float, float], crop: Crop) -> tuple[float, float, float, float]:
    """A box of the whole picture in fractions of its crop; it may lie outside."""
    x0, y0, x1, y1 = box
    width, height = crop.x1 - crop.x0, crop.y1 - crop.y0
    return (
        (x0 - crop.x0) / width,
        (y0 - crop.y0) / height,
        (x1 - crop.x0) / width,
        (y1 - crop.y0) / height,
    )


def _cropped(mask: Mask, crop: Crop) -> Mask:
    """The part [h', w'] of a mask [h, w] of the whole picture that lies in the crop; at least one pixel."""
    height, width = mask.shape
    top, left = min(int(crop.y0 * height), height - 1), min(int(crop.x0 * width), width - 1)
    bottom, right = max(round(crop.y1 * height), top + 1), max(round(crop.x1 * width), left + 1)
    return np.ascontiguousarray(mask[top:bottom, left:right])


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
