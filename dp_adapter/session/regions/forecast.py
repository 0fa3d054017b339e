"""Where each person will act, as it can be told before a picture is made: what a preview and the API say of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dp_adapter import naming
from dp_adapter.core.types import Grid
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.regions.face_mask import fit_mask
from dp_adapter.session.regions.init_faces import persons_with_region
from dp_adapter.session.regions.requested_regions import RequestedRegions
from dp_adapter.session.regions.sharing_by_words import extend_regions
from dp_adapter.session.regions.tracker_setup import describe_tracking, plan_tracking, track_persons
from dp_adapter.session.scene import Scene
from dp_adapter.settings import Region, Settings


@dataclass(frozen=True)
class Forecast:
    """One person.

    Attributes:
        number: of the person, from 0.
        source: where they will act, in words.
        mask: [1, h, w] where they act at the first step, of the picture's size or smaller; None for the whole
            picture.
        known: whether that comes from something that says where the face is.
        follows: whether it moves to the face while the picture forms.
    """

    number: int
    source: str
    mask: Tensor | None
    known: bool
    follows: bool

    @property
    def coverage(self) -> float:
        """Share of the picture at the first step."""
        return 1.0 if self.mask is None else float(self.mask.mean())

    @property
    def line(self) -> str:
        """For people, without the person."""
        return f"{self.source}; {self.coverage:.0%} of the picture{' at the first step' if self.follows else ''}"


def forecast_regions(
    settings: Settings, scene: Scene, photos: ReferencePhotos, encoders: EncoderPool, persons: Sequence[int]
) -> list[Forecast]:
    """What a generation of this request will begin with.

    Args:
        scene: with at most one init picture.

    Raises:
        PictureError: a mask cannot be read.
    """
    asked, in_region = settings.regions, frozenset(persons)
    if settings.sharing == "words" and len(persons) > 1:
        asked, in_region = extend_regions(settings.regions, persons, scene.inpaint is not None)
    requested = RequestedRegions(settings, scene, photos, encoders, asked)
    regions = {number: requested.find_regions(number) for number in persons}
    tracked = {one.number: one for one in track_persons(requested, regions, {})}
    made: list[Forecast] = []
    for number, region in regions.items():
        one, source, mask = tracked.get(number), region.source, region.mask
        if one is not None:
            plan = plan_tracking(settings.tracking, scene.progress)
            source = describe_tracking(region, one, settings.tracking, plan, len(persons) == 1)
            mask = region.mask if region.known else _resize(one.start, requested.size)
        elif number not in in_region:
            source = "the places where the words for them look"
        made.append(Forecast(number, source, mask, region.known, one is not None))
    return made


def note_missing_regions(regions: Sequence[Region], sharing: str, acting: Mapping[int, str]) -> tuple[str, ...]:
    """A note for each person without a region while others have one: they may have been forgotten.

    Args:
        regions, sharing: of the request; acting: where each person acts, in words.
    """
    having = persons_with_region(regions)
    if sharing == "words" or not having & set(acting):
        return ()
    return tuple(
        f"{naming.capitalise(naming.person(number))} has no region and acts in {source}. Give them one, such as a box, "
        "to say where they are."
        for number, source in acting.items()
        if number not in having
    )


def _resize(mask: Tensor | None, size: Grid) -> Tensor | None:
    return None if mask is None else torch.stack([fit_mask(one, size) for one in mask])
