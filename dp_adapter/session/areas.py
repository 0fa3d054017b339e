"""The regions of a request → masks in picture space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dp_adapter.core.regions import box_mask, grow_and_feather
from dp_adapter.core.types import Grid
from dp_adapter.identity.encoders import Encoders
from dp_adapter.identity.face import Floats
from dp_adapter.identity.preview import PreviewFinder
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
        free: how far each position of the face [S, h, w] is left to the text; None for nowhere, or where it is unknown.
    """

    mask: Tensor | None
    weight: float
    source: str
    known: bool
    free: Tensor | None = None

    @property
    def coverage(self) -> float:
        return 1.0 if self.mask is None else float(self.mask.mean())


@dataclass(frozen=True)
class Piece:
    """One region of a person, as far as it is known before a face is looked for.

    Attributes:
        mask: [1, h, w] in [0, 1], grown and feathered; None for the whole picture, and for an automatic region.
        weight: of the region, not relative to the others.
        subtracted: whether the person does not act here.
        automatic: whether the mask comes from the face.
        grow, feather: of an automatic region, in fractions of its size.
        source: where a drawn mask comes from, in words.
    """

    mask: Tensor | None = None
    weight: float = 1.0
    subtracted: bool = False
    automatic: bool = False
    grow: float = 0.0
    feather: float = 0.0
    source: str = ""


def strongest(pieces: Sequence[Piece]) -> float:
    """The weight that ``combined``'s masks are relative to."""
    return max(piece.weight for piece in pieces if not piece.subtracted)


def combined(
    pieces: Sequence[Piece], automatic: Callable[[Piece], Tensor | None], size: Grid, unknown: float = 1.0
) -> Tensor | None:
    """The union of a person's added regions, each at its weight, times 1 - mask * weight of each subtracted one.

    Args:
        pieces: from ``Areas.pieces``.
        automatic: an automatic piece's mask [S, h, w] with its own grow and feather; None while no face is known.
        unknown: what an added automatic region is everywhere while no face is known; a subtracted one takes nothing.

    Returns:
        [S, h, w] in [0, 1], relative to ``strongest``; None for the whole picture.
    """
    masks = [automatic(piece) if piece.automatic else piece.mask for piece in pieces]
    if len(pieces) == 1 and (masks[0] is not None or not pieces[0].automatic or unknown == 1):
        return masks[0]
    most = strongest(pieces) or 1.0
    area = torch.zeros(1, size.height, size.width)
    for piece, mask in zip(pieces, masks, strict=True):
        if not piece.subtracted:
            everywhere = unknown if piece.automatic else 1.0
            share = torch.full((1, size.height, size.width), everywhere) if mask is None else mask
            area = torch.maximum(area, share * (piece.weight / most))
    for piece, mask in zip(pieces, masks, strict=True):
        if piece.subtracted and not (piece.automatic and mask is None):
            area = area * (1 - _full(mask, size) * piece.weight).clamp(min=0)
    return area


class Areas:
    """Makes masks for one session.

    Args:
        finder: finds and parses the faces of init pictures in place of the usual two, as in a forming picture.
    """

    def __init__(self, photos: Photos, encoders: Encoders, finder: PreviewFinder | None = None) -> None:
        self._photos = photos
        self._encoders = encoders
        self._finder = finder

    def of(self, settings: Settings, scene: Scene, identity: int) -> Area:
        """The area of one person; for each init picture where it depends on them."""
        pieces = self.pieces(settings, scene, identity)
        looked_at = scene.inits if any(piece.automatic for piece in pieces) else ()
        scenes = [replace(scene, inits=(init,)) for init in looked_at] or [replace(scene, inits=())]
        areas = [self._single(pieces, settings, one, identity) for one in scenes]
        return _batched(areas, Grid(scene.height, scene.width))

    def pieces(self, settings: Settings, scene: Scene, identity: int) -> tuple[Piece, ...]:
        """The regions of one person, with an automatic one where none is added.

        Raises:
            PictureError: a mask cannot be read.
        """
        mine = [region for region in settings.regions if region.identity == identity]
        if all(region.op == "subtract" for region in mine):
            mine.insert(0, Region(identity=identity))
        return tuple(self._piece(region, settings, scene) for region in mine)

    def _piece(self, region: Region, settings: Settings, scene: Scene) -> Piece:
        piece = Piece(weight=region.weight, subtracted=region.op == "subtract")
        size = Grid(scene.height, scene.width)
        if region.kind == "auto":
            grow = settings.tracking.grow if region.grow is None else region.grow
            feather = settings.tracking.feather if region.feather is None else region.feather
            return replace(piece, automatic=True, grow=grow, feather=feather)
        if region.kind == "full":
            return replace(piece, source="the whole picture, as chosen")
        if region.kind == "box":
            assert region.box is not None
            mask = box_mask(*_in_crop((region.box.x0, region.box.y0, region.box.x1, region.box.y1), scene.crop), size)
        else:
            picture = self._photos.read(region.mask, f"regions[{settings.regions.index(region)}].mask")
            mask = fitted(torch.as_tensor(_cropped(_grey(picture), scene.crop)), size)
        soft = softened(mask, region.grow or 0, region.feather or 0)
        return replace(piece, mask=soft, source="a box" if region.kind == "box" else "a drawn mask")

    def _single(self, pieces: Sequence[Piece], settings: Settings, scene: Scene, identity: int) -> Area:
        """The area in a picture of which at most one init picture is known."""
        masks: dict[int, Tensor | None] = {}
        told: list[tuple[Piece, str]] = []
        free: Tensor | None = None
        for piece in pieces:
            source = piece.source
            if piece.automatic:
                masks[id(piece)], source, freed = self._automatic(piece, settings, scene, identity)
                free = free if piece.subtracted else freed
            told.append((piece, source))
        mask = combined(pieces, lambda piece: masks[id(piece)], Grid(scene.height, scene.width))
        unknown = any(piece.automatic and not piece.subtracted and masks[id(piece)] is None for piece in pieces)
        return Area(mask, strongest(pieces), _told(told), not unknown, free)

    def _automatic(
        self, piece: Piece, settings: Settings, scene: Scene, identity: int
    ) -> tuple[Tensor | None, str, Tensor | None]:
        """The mask [1, h, w] of an automatic region, where it comes from, and what of the face is left to the text.

        The masks are None where nothing is known.
        """
        size = Grid(scene.height, scene.width)
        if scene.inpaint is not None and not piece.subtracted:  # what is subtracted is the face itself
            return fitted(torch.as_tensor(scene.inpaint), size)[None], "the inpaint mask", None
        found = self._found(settings, scene, identity)
        if found is not None:
            place, parts = found
            weights = settings.parts.weights()
            mask = face_mask(parts, weights, piece.grow, piece.feather, size)
            words = f"face {place} of the init picture, counted from the left"
            return mask, words, handed_over(parts, weights, size)
        if piece.subtracted:
            return None, "a face that is not known yet", None
        return None, "the whole picture, since nothing says where the face will be", None

    def parts(self, settings: Settings, scene: Scene, identity: int) -> dict[str, Tensor]:
        """What an automatic region of the person is made of, [h, w] by name; nothing where no face is known."""
        found = self._found(settings, scene, identity)
        size = Grid(scene.height, scene.width)
        return {} if found is None else {name: fitted(torch.as_tensor(part), size) for name, part in found[1].items()}

    def points(self, settings: Settings, scene: Scene, identity: int) -> Floats | None:
        """The five points [5, 2] of the person's face in the init picture, in px of the scene; None where none is."""
        found = self._found(settings, scene, identity)
        if found is None:
            return None
        init = scene.inits[0]
        face = self._photos.faces(init, self._finder or self._encoders.yunet)[found[0]]
        size = np.array([scene.width / init.shape[1], scene.height / init.shape[0]], np.float32)
        return (face.points * size).astype(np.float32)

    def _found(self, settings: Settings, scene: Scene, identity: int) -> tuple[int, Mapping[str, Mask]] | None:
        """The person's face in the init picture: its place from the left, and its parts."""
        if not scene.inits or "init" not in settings.tracking.sources:
            return None
        init = scene.inits[0]
        faces = self._photos.faces(init, self._finder or self._encoders.yunet)
        if identity >= len(faces):
            return None
        # One person is the main one of the picture; several are counted from the left.
        main = max(range(len(faces)), key=lambda i: faces[i].size)
        place = main if settings.identities == 1 else identity
        return place, (self._finder or self._encoders.parser).parse(init, faces[place])


def face_mask(
    parts: Mapping[str, Mask], weights: Mapping[str, float], grow: float, feather: float, size: Grid
) -> Tensor:
    """The automatic region [1, h, w] of a face: its parts at their weights, grown and feathered."""
    grown = softened(fitted(torch.as_tensor(skin_and_around(parts, weights)), size), grow, feather)
    return with_features(grown, parts, weights)


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
        inside = fitted(torch.as_tensor(inner[name]), Grid(*mask.shape[-2:]))
        mask = mask * (1 - inside) + inside * weights["face"] * weights[name]
    return mask


def handed_over(parts: Mapping[str, Mask], weights: Mapping[str, float], size: Grid) -> Tensor | None:
    """How far each position inside the face's outline is left to the text: [1, h, w], or None for nowhere."""
    outline = fitted(torch.as_tensor(parts["face"]), size)[None]
    skin = torch.full_like(outline, weights["face"] * weights["skin"])
    free = outline * (1 - with_features(skin, parts, weights))
    return free if bool((free > 0).any()) else None


def _batched(areas: Sequence[Area], size: Grid) -> Area:
    """One area for a batch whose pictures each have their own."""
    first = areas[0]
    if len(areas) == 1 or all(area.mask is None for area in areas):
        return first
    masks = torch.cat([_full(area.mask, size) for area in areas])
    sources = "; ".join(dict.fromkeys(area.source for area in areas))
    freed = [torch.zeros(1, size.height, size.width) if area.free is None else area.free for area in areas]
    free = torch.cat(freed) if any(area.free is not None for area in areas) else None
    return Area(masks, first.weight, sources, all(area.known for area in areas), free)


def _told(sources: Sequence[tuple[Piece, str]]) -> str:
    """Where an area comes from, as in "the whole picture, as chosen, without a box"."""
    added, subtracted = (
        " and ".join(dict.fromkeys(source for piece, source in sources if piece.subtracted == which))
        for which in (False, True)
    )
    return f"{added}, without {subtracted}" if subtracted else added


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


def fitted(mask: Tensor, size: Grid) -> Tensor:
    """[h, w] of any size -> the picture's size, by area."""
    return torch.nn.functional.interpolate(mask[None, None], (size.height, size.width), mode="area")[0, 0]


def softened(mask: Tensor, grow: float, feather: float) -> Tensor:
    """[h, w] -> [1, h, w]; grow and feather in fractions of the region's size, the square root of its area."""
    side = float(mask.sum()) ** 0.5
    return grow_and_feather(mask, grow * side, feather * side)[None]


def _full(mask: Tensor | None, size: Grid) -> Tensor:
    return torch.ones(1, size.height, size.width) if mask is None else mask
