"""Joins checkpoint, people and areas into one generation's injection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dp_adapter.cache import Cache
from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.edits import Edit, Modes
from dp_adapter.errors import FaceError, SettingsError
from dp_adapter.identity.encoders import Encoders
from dp_adapter.identity.library import Identities
from dp_adapter.identity.saved import SavedIdentity
from dp_adapter.identity.shelf import Shelf
from dp_adapter.session.areas import Area, Areas
from dp_adapter.session.editing import Editing, Restorers, no_restorers
from dp_adapter.session.explain import Explanation, PersonExplanation
from dp_adapter.session.features import FeatureReader, Person
from dp_adapter.session.following import following_words, tracker_of
from dp_adapter.session.forms import megabytes, with_form
from dp_adapter.session.people import embedded
from dp_adapter.session.photos import Photos
from dp_adapter.session.scene import Scene
from dp_adapter.session.tracker import Tracker
from dp_adapter.session.variants import variant_of
from dp_adapter.session.ways import way_of
from dp_adapter.settings import Settings
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import BASE_NAMES, Checkpoint, TokenOptions
from dp_adapter.weights.library import Library

_UNKNOWN_START = 0.15  # without a known region the layout is left to the text first (FastComposer's delay)


@dataclass(frozen=True)
class Prepared:
    """What a host needs, and what is told to the user.

    Attributes:
        tracker: moves regions while the picture forms; None where all of them stay.
        edit: the mode at work, whose words go into the prompts; None where the adapter is off.
    """

    injection: Injection
    explanation: Explanation
    tracker: Tracker | None = None
    edit: Edit | None = None


class Session:
    """Keeps loaded checkpoints, encoders and looked-at photos between generations, bounded.

    Args:
        roots: model folders, searched in order.
        paths_allowed: whether a request may name files outside them: True on a command line, False for an API.
        folders: further folders that hold adapters themselves.
        checkpoints: how many stay loaded; checkpoints_mb: as long as their files have no more MB together.
        photos_mb: memory for dropped photos, in MB.
        restorers: the host's face restorers.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        paths_allowed: bool,
        folders: Sequence[Path] = (),
        checkpoints: int = 2,
        photos_mb: int = 256,
        restorers: Restorers = no_restorers,
        checkpoints_mb: int = 4096,
    ) -> None:
        self.roots = tuple(roots)
        self.encoders = Encoders(roots)
        self.library = Library(roots, paths_allowed, folders)
        self.shelf = Shelf(photos_mb * 2**20)
        self.identities = Identities(roots)
        self.photos = Photos(self.encoders, paths_allowed, self.shelf, self.identities)
        self._features = FeatureReader(self.encoders)
        self._areas = Areas(self.photos, self.encoders)
        self.modes = Modes(roots)
        self._editing = Editing(self.modes, self.photos, self.encoders, restorers)
        self._checkpoints: Cache[Checkpoint] = Cache(checkpoints, checkpoints_mb * 2**20)

    def release(self) -> None:
        """Gives all memory back but the shelf's, whose photos are nowhere else; the next generation loads again."""
        for holder in (self.photos, self._features, self._editing):
            holder.forget()
        self._checkpoints.clear()
        self.encoders.release()

    def checkpoint(self, name: str) -> Checkpoint:
        """The adapter file of this name, read once while it stays unchanged.

        Raises:
            WeightsError: there is no such file, or it is not an adapter.
        """
        path = self.library.resolve(name)
        stat = path.stat()
        key = path, stat.st_size, stat.st_mtime_ns
        return self._checkpoints.get(key, lambda: formats.read(path), stat.st_size)

    def prepare(self, settings: Settings, scene: Scene, before: Tracker | None = None) -> Prepared:
        """Everything that one generation needs.

        Args:
            before: of the first pass, from whose regions a hires pass starts.

        Raises:
            DPAdapterError: in words, before anything is sampled; nothing stays behind.
        """
        if not settings.enabled:
            return _off(())
        if not settings.references:
            raise SettingsError(
                "references", "there is no photo", "Give a photo of the person, or disable the adapter."
            )
        edit = self._editing.edit(settings, scene)
        settings = edit.settings
        checkpoint = self.checkpoint(settings.model)
        if checkpoint.base != scene.base:
            raise SettingsError(
                "model",
                f"{checkpoint.path.name} is made for {BASE_NAMES[checkpoint.base]}, the loaded checkpoint is "
                f"{BASE_NAMES[scene.base]}",
                "Choose an adapter for this base, or another checkpoint.",
            )
        variant = variant_of(settings, checkpoint, self.library)
        people, notes = self._people(settings, checkpoint, variant)
        if not people:
            return _off((*notes, "No photo is left to use, so the picture was made without the adapter."))
        areas = {number: self._areas.of(settings, scene, number) for number in people}
        seen = {number: person.seen for number, person in people.items()}
        tracker = tracker_of(settings, scene, self._areas, areas, seen, self.photos, self.encoders, before)
        return _joined(edit, checkpoint, variant, people, areas, tracker, notes, scene.bytes_per_number)

    def save_identity(self, name: str, settings: Settings, replace: bool = False) -> SavedIdentity:
        """Saves person 0 of a request under a name, as seen by every encoder that is here; ``notes`` name the others.

        Args:
            replace: whether an identity of this name may be overwritten.

        Raises:
            IdentityError: the name cannot be used or is taken, or the folder cannot be written.
            DPAdapterError: as `prepare`, for photos and faces.
        """
        self.identities.require_free(name, replace)
        return self.identities.save(embedded(name, settings, self.photos, self.encoders), replace)

    def _people(
        self, settings: Settings, checkpoint: Checkpoint, variant: str
    ) -> tuple[dict[int, Person], tuple[str, ...]]:
        detector = self._features.detector(checkpoint, variant)
        people: dict[int, Person] = {}
        notes: list[str] = []
        for number in range(settings.identities):
            seen, left_out = self.photos.look(settings, number, detector)
            seen, treated = self._editing.treated(seen, settings)
            notes += (*left_out, *treated)
            if seen:
                people[number] = self._features.read(seen, settings, checkpoint, variant)
                notes += people[number].notes
            elif settings.no_face == "stop":
                raise FaceError(f"All photos of person {number} have weight 0", "Raise one, or remove the person.")
        return people, tuple(notes)


def _off(notes: Sequence[str]) -> Prepared:
    return Prepared(Injection(()), Explanation(active=False, notes=tuple(notes)))


def _joined(
    edit: Edit,
    checkpoint: Checkpoint,
    variant: str,
    people: dict[int, Person],
    areas: dict[int, Area],
    tracker: Tracker | None,
    notes: Sequence[str],
    bytes_per_number: int,
) -> Prepared:
    settings = edit.settings
    way = way_of(settings, checkpoint)
    options = TokenOptions(variant != "faceid-plus", 1.0 if settings.structure is None else settings.structure)
    identities: list[Identity] = []
    told: list[PersonExplanation] = []
    tracks = {} if tracker is None else {one.number: one for one in tracker.people}
    for number, person in people.items():
        tokens, area = checkpoint.tokens(person.features, options), areas[number]
        weight = settings.weight * area.weight
        on_text = checkpoint.on_text(person.features, options)
        one = Identity(checkpoint.adapter, tokens, weight, None, way.mode, way.zero_tokens, text=on_text)
        followed = tracks.get(number)
        if followed is None:
            identities.append(replace(one, mask=area.mask, free=area.free))
        else:
            identities.append(replace(one, track=followed.track))
        told.append(
            PersonExplanation(
                number,
                person.photos,
                person.combine,
                person.encoders,
                len(tokens.cond),
                area.source if followed is None else following_words(area, followed, settings.tracking),
                round(area.coverage if followed is None else followed.coverage, 4),
            )
        )
    # Where nothing but a found face gets the identity, the layout is left to the text without a delay.
    waiting = settings.tracking.fallback != "full"
    known = all(area.known or (number in tracks and waiting) for number, area in areas.items())
    schedule = _schedule(settings, known)
    injection = Injection(
        tuple(identities),
        schedule,
        {"down": settings.gate.down, "middle": settings.gate.middle, "up": settings.gate.up},
        TextPathway(settings.text_weight, settings.text_emphasis, settings.strict_text_region, settings.free_parts),
        tuple((entry, settings.lora_weight) for entry in checkpoint.lora),
    )
    injection = with_form(settings, injection, bytes_per_number)
    return Prepared(
        injection,
        Explanation(
            active=injection.active,
            model=checkpoint.path.name,
            family=variant,
            base=checkpoint.base,
            blend=way.mode,
            form=injection.form_used,
            form_mb=0.0
            if injection.gated
            else round(megabytes(injection.form_used, injection.identities, bytes_per_number), 1),
            weight=settings.weight,
            span=(schedule.start, schedule.end),
            lora=settings.lora_weight if checkpoint.lora else 0.0,
            persons=tuple(told),
            notes=(*notes, *_why_idle(injection), *_nothing_free(settings, areas, tracker)),
            mode=settings.mode,
            mode_lines=edit.lines,
            words=edit.words,
        ),
        tracker,
        edit,
    )


def _why_idle(injection: Injection) -> tuple[str, ...]:
    """What switches a complete request off, in words; nothing where it acts."""
    if injection.active:
        return ()
    if all(identity.weight == 0 for identity in injection.identities):
        return ("Its weight is 0.",)
    if not injection.schedule.ever_active:
        return ("Its weight curve is 0 everywhere.",)
    return ("Its region covers nothing of the picture.",)


def _nothing_free(settings: Settings, areas: Mapping[int, Area], tracker: Tracker | None) -> tuple[str, ...]:
    """Why the parts that are to be free are not."""
    if not settings.free_parts or tracker is not None or any(area.free is not None for area in areas.values()):
        return ()
    return ("No part of a face is free: that needs an automatic region, and a part left to the text.",)


def _schedule(settings: Settings, known: bool) -> Schedule:
    automatic = 0.0 if known else _UNKNOWN_START
    start = automatic if settings.span.start is None else settings.span.start
    return Schedule(
        min(start, settings.span.end),
        settings.span.end,
        settings.curve.points,
        {"down": settings.levels.down, "middle": settings.levels.middle, "up": settings.levels.up},
        dict(settings.levels.sites),
    )
