"""Regions over time: the identities' tracks follow the faces of the pictures that form (method.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dp_adapter import naming
from dp_adapter.core.latent_gate import LatentGate, Middle, choose_face
from dp_adapter.core.regions.attention_maps import find_regions
from dp_adapter.core.regions.track import Track
from dp_adapter.core.types import Grid
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.preview_faces import PreviewFinder
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.session.regions.face_mask import fit_mask
from dp_adapter.session.regions.face_matching import FacePosition, match
from dp_adapter.session.regions.init_faces import lies_in

_WORKING = 384  # px of the long side to which smaller previews are enlarged, so that masks get a smooth outline
_TELLS = 0.5  # progress from which on a face shows whose it is

FacePositions = Mapping[int, FacePosition]
Likeness = Callable[[Picture, Sequence[Face]], Floats]
Heads = Callable[[Tensor, int, bool], Sequence[Tensor | None]]


@dataclass(frozen=True, eq=False)
class FoundRegion:
    """Where a person acts in one picture.

    Attributes:
        mask: [1, h, w]; free: what of the face is left to the text [1, h, w], or None for nothing.
    """

    mask: Tensor
    free: Tensor | None = None


FoundRegions = Mapping[int, FoundRegion]


@dataclass(frozen=True, eq=False)
class TrackedPerson:
    """One person whose region is found while the picture forms.

    Attributes:
        start: [S, h, w], where the identity acts before any source has an answer; None is the whole picture.
        known: whether ``start`` shows the face already.
        shaped: a face's parts, masks [h', w'] by name -> the person's region.
        spread: a mask [h', w'] of the head -> the person's region.
        start_free: [S, h, w], what is left to the text at the start, or None.
    """

    number: int
    track: Track
    start: Tensor | None
    known: bool
    region_of_face: Callable[[Mapping[str, Floats]], FoundRegion]
    region_of_head: Callable[[Tensor], FoundRegion]
    start_free: Tensor | None = None

    @property
    def coverage(self) -> float:
        """Share of the picture in which the person acts now."""
        return 1.0 if self.track.mask is None else float(self.track.mask.mean())


@dataclass(frozen=True)
class TrackingPlan:
    """When and how it is looked.

    Attributes:
        moments: progress at which the preview is searched, rising; none without previews.
        attention: whether attention maps are read; ``attention_first``: whether they decide where previews have an
            answer, too.
        decoder: what makes the previews, see ``Tracking.decoder``.
        words: the user's person words, with commas between; empty for the usual ones.
        late: progress from which on a person without any answer acts in the whole picture; None for never.
        hurried: whether there are too few calls of the UNet for a look to hold in any.
        by_gate: whether the checkpoint's gate reads what is predicted, at every call, in place of all these.
    """

    moments: tuple[float, ...]
    attention: bool = False
    attention_first: bool = False
    decoder: str = "auto"
    words: str = ""
    late: float | None = None
    hurried: bool = False
    by_gate: bool = False


@dataclass(frozen=True, eq=False)
class PreviewLook:
    """What the previews of a batch show at one moment: per picture, each person's place and region."""

    positions: tuple[FacePositions, ...]
    regions: tuple[FoundRegions, ...]


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What a look needs to know.

    Attributes:
        size: of the picture to be made, in px.
        taken: [h, w], drawn regions of persons who are not tracked: faces in there are theirs. Or None.
        init: where the init pictures show the persons' faces, one for all pictures or one for each; empty without any.
        likeness: [persons, faces] cosines of a picture's faces to the persons; None where nobody can be told apart.
        heads: an attention map [h', w'], a number of people, whether the words mean heads -> a mask [h', w'] for each
            head, from left to right.
    """

    size: Grid
    taken: Tensor | None = None
    init: tuple[FacePositions, ...] = ()
    likeness: Likeness | None = None
    heads: Heads = lambda share, persons, head: find_regions(share, persons, head=head)


@dataclass
class _State:
    """What is known in one pass, by picture and person."""

    looked: int = 0  # moments that are over
    late: bool = False
    pictures: int = 1
    positions: dict[int, dict[int, FacePosition]] = field(default_factory=dict[int, dict[int, FacePosition]])
    regions: dict[int, dict[int, FoundRegion]] = field(default_factory=dict[int, dict[int, FoundRegion]])
    words: dict[int, dict[int, FoundRegion]] = field(default_factory=dict[int, dict[int, FoundRegion]])
    calls: int = 0
    acted: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])  # calls by picture and person
    middles: dict[int, Middle] = field(default_factory=dict[int, Middle])  # of the face that a gate sees, by picture


class Tracker:
    """Moves the tracks of one generation.

    ``look`` may run beside the sampler; all else is called by the sampler's thread, between calls of the UNet.

    Args:
        positions: where faces were in an earlier pass, by picture.
        gate: sees the face of the only person in what is predicted, so that nothing else has to look.

    Attributes:
        failure: why previews cannot be decoded or searched in this pass; empty where they can.
    """

    def __init__(
        self,
        persons: Sequence[TrackedPerson],
        plan: TrackingPlan,
        finder: PreviewFinder,
        around: Surroundings,
        positions: Mapping[int, FacePositions] | None = None,
        gate: LatentGate | None = None,
    ) -> None:
        self.persons = tuple(persons)
        self.plan = plan
        self.gate = gate
        self._finder = finder
        self._around = around
        self._before = positions or {}
        self._state = _State()
        self.failure = ""

    def restart(self) -> None:
        """A pass begins: the tracks are where they are before the first step."""
        self.failure = ""
        self._state = _State(positions={number: dict(positions) for number, positions in self._before.items()})
        for person in self.persons:
            person.track.move(person.start, person.start_free)

    def is_due(self, progress: float) -> bool:
        """Whether a look is due after a call of the UNet; asking marks the moments up to now as over."""
        over = sum(moment <= progress for moment in self.plan.moments)
        is_due = over > self._state.looked
        self._state.looked = max(over, self._state.looked)
        return is_due

    def look(self, pictures: Sequence[Picture], progress: float) -> PreviewLook:
        """Searches the previews of a batch."""
        seen = [self._look_at(_enlarge(picture), number, progress) for number, picture in enumerate(pictures)]
        return PreviewLook(tuple(positions for positions, _ in seen), tuple(regions for _, regions in seen))

    def apply(self, look: PreviewLook) -> None:
        """Moves the tracks to where the faces were seen; a face that is lost stays where it was."""
        state = self._state
        state.pictures = len(look.regions)
        for number, (positions, regions) in enumerate(zip(look.positions, look.regions, strict=True)):
            state.positions.setdefault(number, {}).update(positions)
            state.regions.setdefault(number, {}).update(regions)
        self._move()

    def follow(self, predicted: Tensor, progress: float) -> None:
        """Moves the only person's track to where the gate sees a face in predicted latents [S, c, h, w]."""
        assert self.gate is not None
        (person,) = self.persons
        shares = self.gate(predicted, progress)
        self._state.pictures = len(shares)
        for number, share in enumerate(shares):
            found = choose_face(share, self._state.middles.get(number))
            if found is not None:  # else it stays where it was
                own, self._state.middles[number] = found
                self._state.regions[number] = {person.number: person.region_of_head(own)}
        self._move()

    def attend(self, maps: Tensor, head: Callable[[int], bool]) -> None:
        """Takes the person words' attention for pictures in which nothing better is known.

        Args:
            maps: [S, h', w']; head: whether the words of a picture mean a head, not a body.
        """
        self._state.pictures = len(maps)
        for number, attention in enumerate(maps):
            if not self._is_settled(number):
                heads = self._around.heads(attention, len(self.persons), head(number))
                found = zip(self.persons, heads, strict=True)
                words = {person.number: person.region_of_head(head) for person, head in found if head is not None}
                self._state.words.setdefault(number, {}).update(words)
        self._move()

    def count_call(self, factor: float, pictures: int) -> None:
        """The UNet has been called for so many pictures, with this factor of the schedule on the weights."""
        self._state.calls += 1
        self._state.pictures = pictures
        for person in self.persons:
            mask = person.track.mask
            for number in range(self._state.pictures):
                there = mask is None or bool(_of_picture(mask, number).any())
                self._state.acted[number, person.number] += there and factor != 0

    def give_up(self, progress: float, last: bool = False) -> None:
        """Lets those whom nothing has found act in the whole picture, if it is late enough or the last chance."""
        late = self.plan.late is not None and (progress >= self.plan.late or last)
        if late and not self._state.late:
            self._state.late = True
            if self.unseen_persons():
                self._move()

    @property
    def wants_attention(self) -> bool:
        """Whether some picture still needs its attention map."""
        return self.plan.attention and not all(self._is_settled(number) for number in range(self._state.pictures))

    @property
    def positions(self) -> Mapping[int, FacePositions]:
        """Where faces were seen last, by picture."""
        return self._state.positions

    def unseen_persons(self) -> tuple[int, ...]:
        """Persons whom no source has found in some picture."""
        return tuple(
            person.number
            for person in self.persons
            if not person.known and not all(self._answers(person, number) for number in range(self._state.pictures))
        )

    def notes(self) -> tuple[str, ...]:
        """What the user has to know about the pass that ended, in words."""
        sentences = [f"Previews could not be used ({self.failure})."] if self.failure else []
        for number in self.unseen_persons():
            person = next(one for one in self.persons if one.number == number)
            sought = "was not looked for, as there are too few steps" if self.plan.hurried else "was not found while"
            formed = "" if self.plan.hurried else " the picture formed"
            where = self._describe_acting(person)
            sentences.append(f"The face of {naming.person(number)} {sought}{formed}; the identity acted {where}.")
        return tuple(sentences)

    def _describe_acting(self, person: TrackedPerson) -> str:
        """Where and how often a person acted in the pictures in which nothing has found them, in words."""
        state = self._state
        pictures = [number for number in range(state.pictures) if not self._answers(person, number)]
        times = [state.acted[number, person.number] for number in pictures]
        start = person.start
        acts_from_start = start is None or bool(start.any())
        if (state.calls and not any(times)) or not (state.calls or acts_from_start or state.late):
            return "nowhere"
        alone = len(self.persons) == 1 and self._around.taken is None
        where = "in the whole picture" if alone else "in what the others left of the picture"
        if acts_from_start and not state.late:
            where = "in the whole picture" if start is None or bool((start == 1).all()) else "in its drawn region"
        when = "" if acts_from_start else ", from late on"
        least, most = min(times), max(times)
        often = f"{most}" if least == most else f"{least} to {most}"
        return f"{where}{when}" + (f" (in {often} of {state.calls} calls of the model)" if state.calls else "")

    def _is_settled(self, number: int) -> bool:
        """Whether a picture's attention has nothing more to say."""
        regions = self._state.regions.get(number, {})
        return not self.plan.attention_first and all(one.known or one.number in regions for one in self.persons)

    def _look_at(self, picture: Picture, number: int, progress: float) -> tuple[FacePositions, FoundRegions]:
        faces = [face for face in self._finder.detect(picture) if not self._is_taken(face, picture)]
        positions = [FacePosition.of(face, picture.shape) for face in faces]
        likeness = None
        if self._around.likeness is not None and progress >= _TELLS and len(faces) > 1:
            likeness = self._around.likeness(picture, faces)
        persons = [person.number for person in self.persons]
        found = match(positions, persons, self._last_positions(number), likeness)
        regions = {
            one.number: one.region_of_face(self._finder.parse(picture, faces[found[one.number]]))
            for one in self.persons
            if one.number in found
        }
        return {person: positions[index] for person, index in found.items()}, regions

    def _last_positions(self, number: int) -> FacePositions:
        """Where each person was seen last in one picture, in the init picture if nowhere else."""
        init = self._around.init
        last: dict[int, FacePosition] = {}
        if init:
            last.update(init[number if len(init) > 1 else 0])
        last.update(self._state.positions.get(number, {}))
        return last

    def _is_taken(self, face: Face, picture: Picture) -> bool:
        taken = self._around.taken
        return taken is not None and lies_in(face, picture, taken)

    def _move(self) -> None:
        acting = [self._regions_in(number) for number in range(self._state.pictures)]
        for person in self.persons:
            regions = [of_picture[person.number] for of_picture in acting]
            masks = [None if region is None else region.mask for region in regions]
            freed = [None if region is None else region.free for region in regions]
            person.track.move(self._stack(masks, 1.0), self._stack(freed, 0.0))

    def _regions_in(self, number: int) -> dict[int, FoundRegion | None]:
        """Where everybody acts in one picture; who would act in all of it leaves the others theirs."""
        regions = {person.number: self._region_of(person, number) for person in self.persons}
        there = [region.mask for region in regions.values() if region is not None]
        taken = self._around.taken
        if taken is not None:  # made as fine as the picture, unlike what moves
            there.append(fit_mask(taken, Grid(*there[0].shape[-2:]))[None] if there else taken[None])
        rest = FoundRegion(1 - torch.cat(there).amax(0, keepdim=True)) if there else None
        return {person: rest if region is None else region for person, region in regions.items()}

    def _stack(self, masks: Sequence[Tensor | None], otherwise: float) -> Tensor | None:
        """[1, h, w] each -> [S, h, w], the missing ones filled; None where all are missing."""
        if all(mask is None for mask in masks):
            return None
        filled = torch.full((1, self._around.size.height, self._around.size.width), otherwise)
        return torch.cat([filled if mask is None else mask for mask in masks])

    def _answers(self, person: TrackedPerson, number: int) -> list[FoundRegion]:
        """What the sources say about a person in one picture, the one that decides first."""
        state = self._state
        ranked = (state.words, state.regions) if self.plan.attention_first else (state.regions, state.words)
        answers = [source.get(number, {}).get(person.number) for source in ranked]
        return [answer for answer in answers if answer is not None]

    def _region_of(self, person: TrackedPerson, number: int) -> FoundRegion | None:
        """Where a person acts in one picture, or None for all of it."""
        for answer in self._answers(person, number):
            return answer
        if person.start is None or (self._state.late and not person.known):
            return None
        free = person.start_free
        return FoundRegion(_of_picture(person.start, number), None if free is None else _of_picture(free, number))


def _of_picture(masks: Tensor, number: int) -> Tensor:
    """[S, h, w], S = 1 where all pictures share it -> [1, h, w]."""
    return masks[number : number + 1] if len(masks) > 1 else masks


def _enlarge(picture: Picture) -> Picture:
    import cv2

    factor = _WORKING / max(picture.shape[:2])
    if factor <= 1:
        return picture
    size = round(picture.shape[1] * factor), round(picture.shape[0] * factor)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), np.uint8)
