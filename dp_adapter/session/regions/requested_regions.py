"""The regions of a request → masks in picture space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dp_adapter.core.regions.region_masks import box_mask, grow_and_feather
from dp_adapter.core.types import Grid
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.preview_faces import PreviewFinder
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.regions.face_matching import FacePosition
from dp_adapter.session.regions.init_faces import FacesOfPicture, InitFaces, looking
from dp_adapter.session.scene import Crop, Mask, Scene
from dp_adapter.settings import Region, Settings

_FEATURES = ("brows", "eyes", "glasses", "nose", "mouth")
_AROUND = ("hair", "neck", "clothes", "background")


@dataclass(frozen=True)
class PersonRegion:
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
        pieces: from ``RequestedRegions.pieces``.
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


@dataclass(frozen=True)
class _Automatic:
    """An automatic region as it is known before the first step.

    Attributes:
        mask: [1, h, w]; None where it is the whole picture.
        source: where it comes from, in words.
        known: whether something says where the face is.
        free: what of the face is left to the text [1, h, w], or None.
    """

    mask: Tensor | None
    source: str
    known: bool = False
    free: Tensor | None = None


class RequestedRegions:
    """Makes masks for one session.

    Args:
        finder: finds and parses the faces of init pictures in place of the usual two, as in a forming picture.
    """

    def __init__(self, photos: ReferencePhotos, encoders: EncoderPool, finder: PreviewFinder | None = None) -> None:
        self._photos = photos
        self._encoders = encoders
        self._finder = finder
        self._init_faces = InitFaces(photos, encoders, finder)

    def forget(self) -> None:
        """Lets go what was seen in init pictures."""
        self._init_faces.forget()

    def of(self, settings: Settings, scene: Scene, identity: int) -> PersonRegion:
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
            source = "a box"
        else:
            drawn = self._photos.read_mask(region.mask, f"regions[{settings.regions.index(region)}].mask")
            mask = fitted(torch.as_tensor(_cropped((drawn / 255).astype(np.float32), scene.crop)), size)
            source = "a drawn mask"
        return replace(piece, mask=softened(mask, region.grow or 0, region.feather or 0), source=source)

    def _single(self, pieces: Sequence[Piece], settings: Settings, scene: Scene, identity: int) -> PersonRegion:
        """The area in a picture of which at most one init picture is known."""
        found = {id(piece): self._automatic(piece, settings, scene, identity) for piece in pieces if piece.automatic}
        told = [(piece, found[id(piece)].source if piece.automatic else piece.source) for piece in pieces]
        added = [found[id(piece)] for piece in pieces if piece.automatic and not piece.subtracted]
        mask = combined(pieces, lambda piece: found[id(piece)].mask, Grid(scene.height, scene.width))
        free = added[-1].free if added else None
        return PersonRegion(mask, strongest(pieces), _told(told), all(one.known for one in added), free)

    def _automatic(self, piece: Piece, settings: Settings, scene: Scene, identity: int) -> _Automatic:
        size = Grid(scene.height, scene.width)
        if scene.inpaint is not None and not piece.subtracted:  # what is subtracted is the face itself
            return _Automatic(fitted(torch.as_tensor(scene.inpaint), size)[None], "the inpaint mask", True)
        found = self._found(settings, scene, identity)
        if found is not None:
            source, parts = found
            weights = settings.parts.weights()
            mask = face_mask(parts, weights, piece.grow, piece.feather, size)
            return _Automatic(mask, source, True, handed_over(parts, weights, size))
        if piece.subtracted:
            return _Automatic(None, "a face that is not known yet")
        others = self._others(settings, scene, identity)
        nobody_knows = "since nothing says where the face will be"
        if others is None:
            return _Automatic(None, f"the whole picture, {nobody_knows}")
        return _Automatic(1 - others, f"what the other persons leave of the picture, {nobody_knows}")

    def _others(self, settings: Settings, scene: Scene, identity: int) -> Tensor | None:
        """Where other persons are known to be, all together [1, h, w]; None where nothing is known of them."""
        found = self._faces(settings, scene)
        unknown = {n for n in looking(settings) if found is None or n not in found.whose}
        known = [n for n in range(settings.identities) if n != identity and n not in unknown]
        masks = [self._single(self.pieces(settings, scene, n), settings, scene, n).mask for n in known]
        there = [mask for mask in masks if mask is not None]
        return torch.stack(there).amax(0) if there else None

    def parts(self, settings: Settings, scene: Scene, identity: int) -> dict[str, Tensor]:
        """What an automatic region of the person is made of, [h, w] by name; nothing where no face is known."""
        found = self._found(settings, scene, identity)
        size = Grid(scene.height, scene.width)
        return {} if found is None else {name: fitted(torch.as_tensor(part), size) for name, part in found[1].items()}

    def points(self, settings: Settings, scene: Scene, identity: int) -> Floats | None:
        """The five points [5, 2] of the person's face in the init picture, in px of the scene; None where none is."""
        found = self._faces(settings, scene)
        if found is None or identity not in found.whose:
            return None
        init = scene.inits[0]
        size = np.array([scene.width / init.shape[1], scene.height / init.shape[0]], np.float32)
        return (found.faces[found.whose[identity]].points * size).astype(np.float32)

    def places(self, settings: Settings, scene: Scene) -> tuple[Mapping[int, FacePosition], ...]:
        """Where the persons' faces are in each init picture."""
        one_each = [(init, self._faces(settings, replace(scene, inits=(init,)))) for init in scene.inits]
        return tuple({} if faces is None else faces.places(init) for init, faces in one_each)

    def _found(self, settings: Settings, scene: Scene, identity: int) -> tuple[str, Mapping[str, Mask]] | None:
        """The person's face in the init picture: which it is, in words, and its parts."""
        found = self._faces(settings, scene)
        if found is None or identity not in found.whose:
            return None
        face = found.faces[found.whose[identity]]
        return found.told(identity), (self._finder or self._encoders.parser).parse(scene.inits[0], face)

    def _faces(self, settings: Settings, scene: Scene) -> FacesOfPicture | None:
        """Whose the faces of the first init picture are; None where nobody is looked for in one."""
        if not scene.inits or "init" not in settings.tracking.sources:
            return None

        def drawn(person: int) -> Tensor | None:
            mask = combined(self.pieces(settings, scene, person), lambda _: None, Grid(scene.height, scene.width))
            return None if mask is None else mask[0]

        return self._init_faces.of(settings, scene.inits[0], drawn)


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


def _batched(areas: Sequence[PersonRegion], size: Grid) -> PersonRegion:
    """One area for a batch whose pictures each have their own."""
    first = areas[0]
    if len(areas) == 1 or all(area.mask is None for area in areas):
        return first
    masks = torch.cat([_full(area.mask, size) for area in areas])
    sources = "; ".join(dict.fromkeys(area.source for area in areas))
    freed = [torch.zeros(1, size.height, size.width) if area.free is None else area.free for area in areas]
    free = torch.cat(freed) if any(area.free is not None for area in areas) else None
    return PersonRegion(masks, first.weight, sources, all(area.known for area in areas), free)


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


def fitted(mask: Tensor, size: Grid) -> Tensor:
    """[h, w] of any size -> the picture's size, by area."""
    return torch.nn.functional.interpolate(mask[None, None], (size.height, size.width), mode="area")[0, 0]


def softened(mask: Tensor, grow: float, feather: float) -> Tensor:
    """[h, w] -> [1, h, w]; grow and feather in fractions of the region's size, the square root of its area."""
    side = float(mask.sum()) ** 0.5
    return grow_and_feather(mask, grow * side, feather * side)[None]


def _full(mask: Tensor | None, size: Grid) -> Tensor:
    return torch.ones(1, size.height, size.width) if mask is None else mask
