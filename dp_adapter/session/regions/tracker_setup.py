"""Makes the tracker of one generation: who is tracked, from where, and into which shape of region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dp_adapter.core.latent_gate import LatentGate
from dp_adapter.core.regions.track import Track
from dp_adapter.core.types import Grid
from dp_adapter.errors import DPAdapterError
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.preview_faces import PreviewFinder
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.session.photos.reference_photos import Known, ReferencePhotos
from dp_adapter.session.regions.face_mask import face_mask, fit_mask, free_mask, needs_surroundings, soften
from dp_adapter.session.regions.mask_size import limit_side
from dp_adapter.session.regions.requested_regions import PersonRegion, RequestedRegion, RequestedRegions, unite
from dp_adapter.session.regions.tracker import FoundRegion, Surroundings, TrackedPerson, Tracker, TrackingPlan
from dp_adapter.settings import Parts, Settings, Tracking

_COARSEST = 64  # of a region from attention, which has at most 32 cells itself
_TOO_FEW = 2  # calls
_FORMING = ("preview", "attention")


def make_tracker(
    requested: RequestedRegions,
    regions: Mapping[int, PersonRegion],
    photos: Mapping[int, Sequence[Known]],
    before: Tracker | None,
    gate: LatentGate | None = None,
) -> Tracker | None:
    """The tracker of a generation, or None where all regions are known and stay.

    Args:
        regions: each person's as it is known before the first step.
        photos: each person's.
        before: of the first pass, whose regions the hires pass starts from.
        gate: the checkpoint's, if it has one. It sees whole faces, and not whose they are.
    """
    earlier = {} if before is None else {one.number: one.track for one in before.persons}
    settings = requested.settings
    weights = settings.parts.weights()
    fits = "preview" in settings.tracking.sources and len(regions) == 1 and weights == Parts().weights()
    gate = gate if fits and not settings.free_parts else None
    persons = track_persons(requested, regions, earlier, gate is not None)
    if not persons:
        return None
    scene, encoders = requested.scene, requested.encoders
    numbers = [one.number for one in persons]
    drawn = [region.mask.amax(0) for n, region in regions.items() if n not in numbers and region.mask is not None]
    return Tracker(
        persons,
        plan_tracking(settings.tracking, scene.progress, gate is not None),
        PreviewFinder(encoders.yunet, encoders.parser, near=not needs_surroundings(weights)),
        Surroundings(
            size=requested.moving_size,
            taken=torch.stack(drawn).amax(0) if drawn else None,
            init=requested.face_positions(),
            likeness=_Likeness(requested.photos, [photos[number] for number in numbers]),
        ),
        None if before is None else before.positions,
        gate,
    )


def track_persons(
    requested: RequestedRegions,
    regions: Mapping[int, PersonRegion],
    earlier: Mapping[int, Track],
    by_gate: bool = False,
) -> list[TrackedPerson]:
    """Everybody whose region follows their face; nobody where nothing looks for one.

    Args:
        regions: see `make_tracker`; earlier: where persons acted at the end of an earlier pass.
        by_gate: whether a gate looks.
    """
    settings, scene = requested.settings, requested.scene
    if scene.inpaint is not None or not set(_FORMING) & set(settings.tracking.sources):
        return []
    size = requested.moving_size
    theirs = {number: requested.requested_by(number, size) for number in regions}
    automatic = [number for number in regions if any(region.automatic for region in theirs[number])]
    plan = plan_tracking(settings.tracking, scene.progress, by_gate)
    return [_track_person(settings, plan, n, theirs[n], regions[n], earlier.get(n), size) for n in automatic]


def plan_tracking(tracking: Tracking, progress: Sequence[float] = (), by_gate: bool = False) -> TrackingPlan:
    """When and how it is looked.

    Args:
        progress: at each call of the UNet, see ``Scene.progress``.
        by_gate: whether a gate looks, at every call.
    """
    moments = tracking.moments if "preview" in tracking.sources else ()
    late = max(moments, default=max(Tracking().moments)) if tracking.fallback == "late" else None
    if by_gate:
        return TrackingPlan((), late=late, hurried=len(progress) == 1, by_gate=True)
    forming = [source for source in tracking.sources if source in _FORMING]
    attention = "attention" in forming
    # What a look shows holds from the next call on, and the attention of the first call, to noise, shows nothing.
    holds = any(moments and one >= moments[0] for one in progress[:-1]) or (attention and len(progress) > _TOO_FEW)
    hurried = bool(progress) and not holds
    return TrackingPlan(moments, attention, forming[0] == "attention", tracking.decoder, tracking.words, late, hurried)


def describe_tracking(
    region: PersonRegion, person: TrackedPerson, tracking: Tracking, plan: TrackingPlan, alone: bool
) -> str:
    """Where a tracked person acts, in words.

    Args:
        alone: whether nobody else has a part of the picture.
    """
    moments = ", ".join(f"{100 * moment:.0f}" for moment in plan.moments)
    names = {"preview": f"previews (at {moments} % of the way)" if moments else "", "attention": "attention maps"}
    forming = " or ".join(filter(None, (names[source] for source in tracking.sources if source in names)))
    if plan.by_gate:
        forming = "the model's predictions (each seen by its gate)"
    if person.known:
        return f"{region.source if region.known else 'the region of the first pass'}, then the face that {forming} show"
    what = "the whole picture" if alone else "what the others leave of the picture"
    if plan.hurried:
        where = "nowhere" if tracking.fallback == "none" else what
        return f"{where}, as there are too few steps to look for the face"
    begins = {"late": "nowhere", "none": "nowhere", "full": "the whole picture"}[tracking.fallback]
    late = "" if plan.late is None else f"; {what} from {100 * plan.late:.0f} % on if nothing has shown it"
    return f"the face as soon as {forming} show it, {begins} until then{late}" if forming else f"{begins}{late}"


def _track_person(
    settings: Settings,
    plan: TrackingPlan,
    number: int,
    requested: Sequence[RequestedRegion],
    region: PersonRegion,
    earlier: Track | None,
    size: Grid,
) -> TrackedPerson:
    """
    Args:
        requested: what the person's region is made of, in masks of this size; region: the same before the first step.
        earlier: where the person acted at the end of an earlier pass.
    """
    weights = settings.parts.weights()
    full = torch.ones(1, size.height, size.width)

    def region_of_face(parts: Mapping[str, Floats]) -> FoundRegion:
        mask = unite(requested, lambda one: face_mask(parts, weights, one.grow, one.feather, size), size)
        free = free_mask(parts, weights, size) if settings.free_parts else None
        return FoundRegion(full if mask is None else mask, free)

    def region_of_head(head: Tensor) -> FoundRegion:
        def automatic(one: RequestedRegion) -> Tensor:
            # Softened while it is small: attention is read at every step, between calls of the UNet.
            soft = soften(fit_mask(head, limit_side(size, _COARSEST)), one.grow, one.feather)
            return torch.nn.functional.interpolate(soft[None], (size.height, size.width), mode="bilinear")[0]

        mask = unite(requested, automatic, size)
        return FoundRegion(full if mask is None else mask)

    known, free = region.known, region.free if settings.free_parts else None
    if earlier is not None and earlier.mask is not None and earlier.mask.any():
        start, free, known = earlier.mask, earlier.free, True
    elif known:
        start = region.mask
    else:
        fallback = settings.tracking.fallback
        at_once = fallback == "full" or (fallback == "late" and plan.hurried)
        start = unite(requested, lambda _: None, size, 1.0 if at_once else 0.0)
    start, free = (None if m is None else torch.stack([fit_mask(one, size) for one in m]) for m in (start, free))
    return TrackedPerson(
        number, Track(start, free), start, known, region_of_face, region_of_head=region_of_head, start_free=free
    )


class _Likeness:
    """Cosines of a preview's faces to the tracked persons, by the shipped encoder."""

    def __init__(self, photos: ReferencePhotos, photos_of: Sequence[Sequence[Known]]) -> None:
        self._photos = photos
        self._photos_of = photos_of

    def __call__(self, picture: Picture, faces: Sequence[Face]) -> Floats:
        """[persons, faces]; zero rows for persons without photos, or saved without that encoder."""
        vectors = [self._photos.sface(picture, face) for face in faces]
        return np.array([[0.0 if one is None else one @ v for v in vectors] for one in self._persons], np.float32)

    @cached_property
    def _persons(self) -> list[Floats | None]:
        return [self._direction(known) for known in self._photos_of]

    def _direction(self, known: Sequence[Known]) -> Floats | None:
        try:
            return self._photos.direction(known) if known else None
        except DPAdapterError:
            return None
