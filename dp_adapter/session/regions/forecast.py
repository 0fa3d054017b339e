"""Where each person will act, as it can be told before a picture is made: what a preview and the API say of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dp_adapter import naming
from dp_adapter.core.types import Grid
from dp_adapter.session.regions import sharing_by_words
from dp_adapter.session.regions.requested_regions import RequestedRegions, fitted
from dp_adapter.session.regions.tracker_setup import followed, following_words, plan_of
from dp_adapter.session.scene import Scene
from dp_adapter.settings import Settings


@dataclass(frozen=True)
class Forecast:
    """One person.

    Attributes:
        number: of the person, from 0.
        source: where they will act, in words.
        mask: [1, h, w] where they act at the first step; None for the whole picture.
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


def forecast(settings: Settings, scene: Scene, areas: RequestedRegions, persons: Sequence[int]) -> list[Forecast]:
    """What a generation of this request will begin with.

    Args:
        scene: with at most one init picture.

    Raises:
        PictureError: a mask cannot be read.
    """
    by_words = settings.sharing == "words" and len(persons) > 1
    settings, placed = (
        sharing_by_words.everywhere(settings, scene, persons) if by_words else (settings, frozenset(persons))
    )
    drawn = {number: areas.of(settings, scene, number) for number in persons}
    moving = {one.number: one for one in followed(settings, scene, areas, drawn, {})}
    told: list[Forecast] = []
    for number, area in drawn.items():
        one, source, mask = moving.get(number), area.source, area.mask
        if one is not None:
            plan = plan_of(settings.tracking, scene.progress)
            source = following_words(area, one, settings.tracking, plan, len(persons) == 1)
            mask = area.mask if area.known else _sized(one.start, Grid(scene.height, scene.width))
        elif number not in placed:
            source = "the places where the words for them look"
        told.append(Forecast(number, source, mask, area.known, one is not None))
    return told


def unplaced(settings: Settings, acting: Mapping[int, str]) -> tuple[str, ...]:
    """A note for each person without a region while others have one: they may have been forgotten.

    Args:
        acting: where each person acts, in words.
    """
    placed = {region.identity for region in settings.regions if region.op == "add"}
    if settings.sharing == "words" or not placed & set(acting):
        return ()
    return tuple(
        f"{naming.begun(naming.person(number))} has no region and acts in {source}. Give them one, such as a box, to "
        "say where they are."
        for number, source in acting.items()
        if number not in placed
    )


def _sized(mask: Tensor | None, size: Grid) -> Tensor | None:
    return None if mask is None else torch.stack([fitted(one, size) for one in mask])
