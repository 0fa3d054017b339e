"""The regions of a request → masks in picture space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dp_adapter.core.regions.region_masks import box_mask
from dp_adapter.core.types import Grid
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.preview_faces import PreviewFinder
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.regions.face_mask import face_mask, fit_mask, free_mask, soften
from dp_adapter.session.regions.face_matching import FacePosition
from dp_adapter.session.regions.init_faces import InitFaces, OwnedFaces, persons_looking
from dp_adapter.session.regions.mask_size import choose_moving_size, choose_size, count_masks
from dp_adapter.session.scene import Crop, Mask, Picture, Scene
from dp_adapter.settings import Region, Settings

_MOST_SEEN = 2**21  # px of an init picture in which faces are looked for


@dataclass(frozen=True)
class PersonRegion:
    """Where one person acts.

    Attributes:
        mask: [S, h, w] in [0, 1] of the picture's size or smaller, S = 1 or one for each picture of the batch; None
            for the whole picture.
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
class RequestedRegion:
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


def greatest_weight(regions: Sequence[RequestedRegion]) -> float:
    """The weight that ``unite``'s masks are relative to."""
    return max(region.weight for region in regions if not region.subtracted)


def unite(
    regions: Sequence[RequestedRegion],
    automatic: Callable[[RequestedRegion], Tensor | None],
    size: Grid,
    unknown: float = 1.0,
) -> Tensor | None:
    """The union of a person's added regions, each at its weight, times 1 - mask * weight of each subtracted one.

    Args:
        automatic: an automatic region's mask [S, h, w] with its own grow and feather; None while no face is known.
        unknown: what an added automatic region is everywhere while no face is known; a subtracted one takes nothing.

    Returns:
        [S, h, w] in [0, 1], relative to ``greatest_weight``; None for the whole picture.
    """
    masks = [automatic(region) if region.automatic else region.mask for region in regions]
    if len(regions) == 1 and (masks[0] is not None or not regions[0].automatic or unknown == 1):
        return masks[0]
    most = greatest_weight(regions) or 1.0
    union = torch.zeros(1, size.height, size.width)
    for region, mask in zip(regions, masks, strict=True):
        if not region.subtracted:
            everywhere = unknown if region.automatic else 1.0
            share = torch.full((1, size.height, size.width), everywhere) if mask is None else mask
            union = torch.maximum(union, share * (region.weight / most))
    for region, mask in zip(regions, masks, strict=True):
        if region.subtracted and not (region.automatic and mask is None):
            union = union * (1 - _full(mask, size) * region.weight).clamp(min=0)
    return union


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
    """Makes the masks of one generation, for which it holds what they are made from.

    Args:
        settings: the request with its mode's values.
        regions: in place of the request's.
        finder: finds and parses the faces of init pictures in place of the usual two, as in a forming picture.

    Attributes:
        size: of the masks, see ``mask_size``.
    """

    def __init__(
        self,
        settings: Settings,
        scene: Scene,
        photos: ReferencePhotos,
        encoders: EncoderPool,
        regions: Sequence[Region] | None = None,
        finder: PreviewFinder | None = None,
    ) -> None:
        self._regions = settings.regions if regions is None else tuple(regions)
        self.settings = settings
        self.scene = scene = replace(scene, inits=tuple(map(_reduce, scene.inits)))
        self.size = choose_size(scene, count_masks(self._regions, settings.identities, len(scene.inits)))
        self.photos = photos
        self.encoders = encoders
        self._finder = finder
        self._looking = persons_looking(self._regions, settings.identities)
        self._init_faces = InitFaces(settings, self._looking, photos, encoders, finder)
        # All regions of a person may ask for these, one after the other, and each takes its time.
        self._drawn: dict[tuple[int, Grid], tuple[RequestedRegion, ...]] = {}
        self._others: dict[tuple[int, int], Tensor | None] = {}  # by person and the picture's id
        self._parsed: tuple[tuple[int, int], Mapping[str, Mask]] | None = None  # the last one: it is large

    @property
    def moving_size(self) -> Grid:
        """Of masks that move while the picture forms."""
        return choose_moving_size(self.scene, count_masks(self._regions, self.settings.identities))

    def find_regions(self, person: int) -> PersonRegion:
        """Where a person acts before the first step; for each init picture where it depends on them."""
        requested = self.requested_by(person, self.size)
        inits = self.scene.inits if any(region.automatic for region in requested) else ()
        return _batch([self._in_picture(requested, person, init) for init in inits or (None,)], self.size)

    def requested_by(self, person: int, size: Grid) -> tuple[RequestedRegion, ...]:
        """The regions of one person in masks of a size, with an automatic one where none is added.

        Raises:
            PictureError: a mask cannot be read.
        """
        if (person, size) not in self._drawn:
            theirs = [region for region in self._regions if region.identity == person]
            if all(region.op == "subtract" for region in theirs):
                theirs.insert(0, Region(identity=person))
            self._drawn[person, size] = tuple(self._read(region, size) for region in theirs)
        return self._drawn[person, size]

    def face_parts(self, person: int) -> dict[str, Tensor]:
        """What an automatic region of the person is made of, [h, w] by name; nothing where no face is known."""
        found = self._find_face(person, self._first_init)
        return (
            {}
            if found is None
            else {part: fit_mask(torch.as_tensor(mask), self.size) for part, mask in found[1].items()}
        )

    def face_points(self, person: int) -> Floats | None:
        """The five points [5, 2] of the person's face in the init picture, in px of the scene; None where none is."""
        init = self._first_init
        found = self._faces_in(init)
        if init is None or found is None or person not in found.face_of:
            return None
        size = np.array([self.scene.width / init.shape[1], self.scene.height / init.shape[0]], np.float32)
        return (found.faces[found.face_of[person]].points * size).astype(np.float32)

    def face_positions(self) -> tuple[Mapping[int, FacePosition], ...]:
        """Where the persons' faces are in each init picture."""
        found = [(init, self._faces_in(init)) for init in self.scene.inits]
        return tuple({} if faces is None else faces.positions(init) for init, faces in found)

    @property
    def _first_init(self) -> Picture | None:
        return self.scene.inits[0] if self.scene.inits else None

    def _read(self, region: Region, size: Grid) -> RequestedRegion:
        read = RequestedRegion(weight=region.weight, subtracted=region.op == "subtract")
        crop = self.scene.crop
        if region.kind == "auto":
            tracking = self.settings.tracking
            grow = tracking.grow if region.grow is None else region.grow
            feather = tracking.feather if region.feather is None else region.feather
            return replace(read, automatic=True, grow=grow, feather=feather)
        if region.kind == "full":
            return replace(read, source="the whole picture, as chosen")
        if region.kind == "box":
            assert region.box is not None
            mask = box_mask(*_in_crop((region.box.x0, region.box.y0, region.box.x1, region.box.y1), crop), size)
            source = "a box"
        else:
            drawn = self.photos.read_mask(region.mask, f"regions[{self._regions.index(region)}].mask")
            mask = fit_mask(torch.as_tensor(_crop_mask((drawn / 255).astype(np.float32), crop)), size)
            source = "a drawn mask"
        return replace(read, mask=soften(mask, region.grow or 0, region.feather or 0), source=source)

    def _in_picture(self, requested: Sequence[RequestedRegion], person: int, init: Picture | None) -> PersonRegion:
        """The person's region in one picture of the batch, whose init picture this is."""
        found = {id(region): self._automatic(region, person, init) for region in requested if region.automatic}
        sources = [(region, found[id(region)].source if region.automatic else region.source) for region in requested]
        added = [found[id(region)] for region in requested if region.automatic and not region.subtracted]
        mask = unite(requested, lambda region: found[id(region)].mask, self.size)
        free = added[-1].free if added else None
        known = all(one.known for one in added)
        return PersonRegion(mask, greatest_weight(requested), _describe_sources(sources), known, free)

    def _automatic(self, region: RequestedRegion, person: int, init: Picture | None) -> _Automatic:
        scene, size = self.scene, self.size
        if scene.inpaint is not None and not region.subtracted:  # what is subtracted is the face itself
            return _Automatic(fit_mask(torch.as_tensor(scene.inpaint), size)[None], "the inpaint mask", True)
        found = self._find_face(person, init)
        if found is not None:
            source, parts = found
            weights = self.settings.parts.weights()
            mask = face_mask(parts, weights, region.grow, region.feather, size)
            return _Automatic(mask, source, True, free_mask(parts, weights, size))
        if region.subtracted:
            return _Automatic(None, "a face that is not known yet")
        others = self._mask_of_others(person, init)
        nobody_knows = "since nothing says where the face will be"
        if others is None:
            return _Automatic(None, f"the whole picture, {nobody_knows}")
        return _Automatic(1 - others, f"what the other persons leave of the picture, {nobody_knows}")

    def _mask_of_others(self, person: int, init: Picture | None) -> Tensor | None:
        """Where other persons are known to be, all together [1, h, w]; None where nothing is known of them."""
        if (person, id(init)) not in self._others:
            self._others[person, id(init)] = self._unite_others(person, init)
        return self._others[person, id(init)]

    def _unite_others(self, person: int, init: Picture | None) -> Tensor | None:
        found = self._faces_in(init)
        unknown = {n for n in self._looking if found is None or n not in found.face_of}
        known = [n for n in range(self.settings.identities) if n != person and n not in unknown]
        masks = [self._in_picture(self.requested_by(n, self.size), n, init).mask for n in known]
        there = [mask for mask in masks if mask is not None]
        return torch.stack(there).amax(0) if there else None

    def _find_face(self, person: int, init: Picture | None) -> tuple[str, Mapping[str, Mask]] | None:
        """The person's face in an init picture: which it is, in words, and its parts."""
        found = self._faces_in(init)
        if init is None or found is None or person not in found.face_of:
            return None
        if self._parsed is None or self._parsed[0] != (person, id(init)):
            face = found.faces[found.face_of[person]]
            self._parsed = (person, id(init)), (self._finder or self.encoders.parser).parse(init, face)
        return found.describe(person), self._parsed[1]

    def _faces_in(self, init: Picture | None) -> OwnedFaces | None:
        """Whose the faces of an init picture are; None where nobody is looked for in one."""
        if init is None or "init" not in self.settings.tracking.sources:
            return None

        def drawn(person: int) -> Tensor | None:
            mask = unite(self.requested_by(person, self.size), lambda _: None, self.size)
            return None if mask is None else mask[0]

        return self._init_faces.find(init, drawn)


def _batch(regions: Sequence[PersonRegion], size: Grid) -> PersonRegion:
    """One region for a batch whose pictures each have their own."""
    first = regions[0]
    if len(regions) == 1 or all(region.mask is None for region in regions):
        return first
    masks = torch.cat([_full(region.mask, size) for region in regions])
    sources = "; ".join(dict.fromkeys(region.source for region in regions))
    freed = [torch.zeros(1, size.height, size.width) if region.free is None else region.free for region in regions]
    free = torch.cat(freed) if any(region.free is not None for region in regions) else None
    return PersonRegion(masks, first.weight, sources, all(region.known for region in regions), free)


def _describe_sources(sources: Sequence[tuple[RequestedRegion, str]]) -> str:
    """Where a region comes from, as in "the whole picture, as chosen, without a box"."""
    added, subtracted = (
        " and ".join(dict.fromkeys(source for region, source in sources if region.subtracted == which))
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


def _crop_mask(mask: Mask, crop: Crop) -> Mask:
    """The part [h', w'] of a mask [h, w] of the whole picture that lies in the crop; at least one pixel."""
    height, width = mask.shape
    top, left = min(int(crop.y0 * height), height - 1), min(int(crop.x0 * width), width - 1)
    bottom, right = max(round(crop.y1 * height), top + 1), max(round(crop.x1 * width), left + 1)
    return np.ascontiguousarray(mask[top:bottom, left:right])


def _reduce(picture: Picture) -> Picture:
    """At most ``_MOST_SEEN`` pixels of an init picture: a face's parts are a dozen masks of its size."""
    import cv2

    height, width = picture.shape[:2]
    if height * width <= _MOST_SEEN:
        return picture
    factor = (_MOST_SEEN / (height * width)) ** 0.5
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _full(mask: Tensor | None, size: Grid) -> Tensor:
    return torch.ones(1, size.height, size.width) if mask is None else mask
