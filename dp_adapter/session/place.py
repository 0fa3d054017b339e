"""Third stage: where each person acts, before the first step and while the picture forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dp_adapter.errors import SettingsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.regions.requested_regions import PersonRegion, RequestedRegions
from dp_adapter.session.regions.sharing_by_words import SharingWords, extend_regions, read_words
from dp_adapter.session.regions.tracker import Tracker
from dp_adapter.session.regions.tracker_setup import make_tracker
from dp_adapter.session.resolve import ResolvedRequest
from dp_adapter.session.scene import Scene
from dp_adapter.session.see import SeenPersons
from dp_adapter.weights.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class PlacedPersons:
    """Where the persons of a generation act.

    Attributes:
        regions: by person, as they are before the first step.
        words: by which the persons share the picture; of nobody where regions divide it.
        tracker: moves regions while the picture forms; None where all of them stay.
        requested: what the regions were made by.
    """

    regions: Mapping[int, PersonRegion]
    words: Mapping[int, SharingWords]
    tracker: Tracker | None
    requested: RequestedRegions


def place(
    resolved: ResolvedRequest,
    seen: SeenPersons,
    scene: Scene,
    photos: ReferencePhotos,
    encoders: EncoderPool,
    before: Tracker | None,
) -> PlacedPersons:
    """
    Args:
        before: of the first pass, from whose regions a hires pass starts.

    Raises:
        SettingsError: persons cannot share by their words.
        PictureError: a drawn mask cannot be read.
    """
    settings, checkpoint, persons = resolved.settings, resolved.checkpoint, tuple(seen.persons)
    asked, words = settings.regions, dict[int, SharingWords]()
    if resolved.sharing == "words" and len(persons) > 1:
        _require_words(checkpoint)
        asked, in_region = extend_regions(asked, persons, scene.inpaint is not None)
        words = read_words(settings.references, scene, persons, in_region)
    requested = RequestedRegions(settings, scene, photos, encoders, asked)
    regions = {number: requested.find_regions(number) for number in persons}
    if checkpoint.sharing != "words":
        # At first a word looks everywhere, so that each place would get something of everybody: unless the checkpoint
        # was trained so, regions by words alone count as unknown.
        alone = {number for number, own in words.items() if not own.in_region}
        regions = {n: replace(region, known=region.known and n not in alone) for n, region in regions.items()}
    photos_of = {number: person.sources for number, person in seen.persons.items()}
    tracker = make_tracker(requested, regions, photos_of, before, checkpoint.adapter.gate)
    return PlacedPersons(regions, words, tracker, requested)


def _require_words(checkpoint: Checkpoint) -> None:
    """Raises SettingsError where the checkpoint's identities act where there are no words yet."""
    if checkpoint.mode == "gated":
        raise SettingsError(
            "sharing",
            f"{checkpoint.title} acts before the prompt's words are read, so persons cannot share by them",
            "Use 'regions'.",
            "regions",
        )
