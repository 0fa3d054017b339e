"""Joins checkpoint, people and areas into one generation's injection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dp_adapter.cache import Cache
from dp_adapter.core.companion import SizeCompanion
from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.text_side import Spoken, TextIdentity
from dp_adapter.core.types import Features
from dp_adapter.edits import Edit, Modes
from dp_adapter.errors import FaceError, SettingsError, WeightsError
from dp_adapter.identity.encoders import Encoders
from dp_adapter.identity.library import Identities
from dp_adapter.identity.saved import SavedIdentity
from dp_adapter.identity.shelf import Shelf
from dp_adapter.session import identity_net, referring, sharing
from dp_adapter.session.areas import Area, Areas
from dp_adapter.session.editing import Editing, Restorers, no_restorers
from dp_adapter.session.explain import Explanation, PersonExplanation
from dp_adapter.session.features import FeatureReader, Person
from dp_adapter.session.following import following_words, tracker_of
from dp_adapter.session.forms import megabytes, with_form
from dp_adapter.session.latents import Latents
from dp_adapter.session.people import embedded
from dp_adapter.session.photos import Photos
from dp_adapter.session.scene import Encode, Scene
from dp_adapter.session.speaking import in_words, spoken_of, text_side
from dp_adapter.session.texts import TextIdentities, joined
from dp_adapter.session.tracker import Tracker
from dp_adapter.session.variants import variant_of
from dp_adapter.session.w_plus import Directions
from dp_adapter.session.ways import way_of, with_parts
from dp_adapter.settings import Settings
from dp_adapter.weights import formats, personal, res_adapter
from dp_adapter.weights.checkpoint import BASE_NAMES, Checkpoint, TokenOptions
from dp_adapter.weights.library import Library
from dp_adapter.weights.res_adapter import ResAdapter

_UNKNOWN_START = 0.15  # without a known region the layout is left to the text first (FastComposer's delay)


@dataclass(frozen=True)
class Prepared:
    """What a host needs, and what is told to the user.

    Attributes:
        tracker: moves regions while the picture forms; None where all of them stay.
        net: InstantID's IdentityNet, for hosts that have a ControlNet; None for none.
        edit: the mode at work, whose words go into the prompts; None where the adapter is off.
        spoken: the persons who act through a word, and how prompts have to speak of them.
    """

    injection: Injection
    explanation: Explanation
    tracker: Tracker | None = None
    edit: Edit | None = None
    net: identity_net.Net | None = None
    spoken: tuple[Spoken, ...] = ()


class Session:
    """Keeps loaded checkpoints, encoders and looked-at photos between generations, bounded.

    Args:
        roots: model folders, searched in order.
        paths_allowed: whether a request may name files outside them: True on a command line, False for an API.
        folders: further folders that hold adapters themselves.
        checkpoints: how many stay loaded; checkpoints_mb: as long as their files have no more MB together.
        photos_mb: memory for dropped photos, in MB.
        restorers: the host's face restorers.
        encoder_folders: folders in which other extensions keep encoders.
        device: where encoders run, as torch names it.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        paths_allowed: bool,
        folders: Sequence[Path] = (),
        checkpoints: int = 2,
        photos_mb: int = 256,
        restorers: Restorers = no_restorers,
        encoder_folders: Sequence[Path] = (),
        device: str = "cpu",
        checkpoints_mb: int = 4096,
    ) -> None:
        self.roots = tuple(roots)
        self.encoders = Encoders(roots, encoder_folders, device)
        self.library = Library(roots, paths_allowed, folders)
        self.shelf = Shelf(photos_mb * 2**20)
        self.identities = Identities(roots)
        latents = Latents(roots, paths_allowed)
        self.photos = Photos(self.encoders, paths_allowed, self.shelf, self.identities, latents)
        self._features = FeatureReader(self.encoders, Directions(roots))
        self._texts = TextIdentities()
        self._areas = Areas(self.photos, self.encoders)
        self.modes = Modes(roots)
        self._editing = Editing(self.modes, self.photos, self.encoders, restorers)
        self._checkpoints: Cache[Checkpoint] = Cache(checkpoints, checkpoints_mb * 2**20)
        self._companions: Cache[ResAdapter] = Cache(1)

    def release(self) -> None:
        """Gives all memory back but the shelf's, whose photos are nowhere else; the next generation loads again."""
        for holder in (self.photos, self._features, self._areas, self._editing, self._texts):
            holder.forget()
        self._checkpoints.clear()
        self._companions.clear()
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
        if not settings.references and not self._is_personal(settings.model):
            raise SettingsError(
                "references", "there is no photo", "Give a photo of the person, or disable the adapter."
            )
        edit = self._editing.edit(settings, scene)
        settings = edit.settings
        checkpoint = self.checkpoint(settings.model)
        _require_base(checkpoint, scene, "model")
        variant = variant_of(settings, checkpoint, self.library)
        settings, told = with_parts(settings, checkpoint)
        edit = replace(edit, settings=settings)
        people, notes = self._people(settings, checkpoint, variant)
        notes = (*told, *notes)
        if not people:
            return _off((*notes, "No photo is left to use, so the picture was made without the adapter."))
        people = referring.with_photos(people, settings, scene, self.encoders)
        companion = self._companion(settings, scene)
        by_words: dict[int, sharing.Shared] = {}
        if sharing.sharing_of(settings, checkpoint, len(people)) == "words":
            settings, placed = sharing.everywhere(settings, scene, tuple(people))
            by_words = sharing.shared(settings, scene, placed, tuple(people))
        areas = {number: self._areas.of(settings, scene, number) for number in people}
        areas = sharing.delayed(areas, by_words, checkpoint)
        seen = {number: person.seen for number, person in people.items()}
        tracker = tracker_of(settings, scene, self._areas, areas, seen, self.photos, self.encoders, before)
        texts = self._on_text(settings, scene, checkpoint, variant, people)
        prepared = _joined(edit, checkpoint, variant, people, texts, areas, tracker, notes, scene, by_words)
        prepared = replace(prepared, injection=replace(prepared.injection, companion=companion))
        if variant != identity_net.VARIANT or not prepared.injection.active:
            return prepared
        return self._with_net(settings, scene, people, prepared)

    def save_identity(self, name: str, settings: Settings, replace: bool = False) -> SavedIdentity:
        """Saves person 0 of a request under a name, as seen by every encoder that is here; ``notes`` name the others.

        Args:
            replace: whether an identity of this name may be overwritten.

        Raises:
            IdentityError: the name cannot be used or is taken, or the folder cannot be written.
            DPAdapterError: as `prepare`, for photos and faces.
        """
        self.identities.require_free(name, replace)
        return self.identities.save(embedded(name, settings, self.photos, self.encoders, self.library), replace)

    def _companion(self, settings: Settings, scene: Scene) -> tuple[SizeCompanion, float] | None:
        """The ResAdapter that was asked for.

        Raises:
            WeightsError: there is none of this name.
            SettingsError: it is made for another base.
        """
        asked = settings.companion
        if not asked.model or asked.weight == 0:
            return None
        path = self.library.folder_or_file(asked.model)
        found = self._companions.get((path, path.stat().st_mtime_ns), lambda: res_adapter.read(path))
        if found.base != scene.base:
            raise SettingsError(
                "companion.model",
                f"{path.name} is made for {BASE_NAMES[found.base]}, the loaded checkpoint is {BASE_NAMES[scene.base]}",
                "Choose a ResAdapter for this base, or none.",
            )
        return found.companion, asked.weight

    def _with_net(self, settings: Settings, scene: Scene, people: Mapping[int, Person], prepared: Prepared) -> Prepared:
        """The same with the IdentityNet of an InstantID generation, or with a note that it has none."""
        path, notes = identity_net.chosen(settings.identity_net, self.library, scene.controls)
        if path is None:
            told = prepared.explanation
            return replace(prepared, explanation=replace(told, notes=(*told.notes, *notes)))
        persons: list[identity_net.NetPerson] = []
        for (number, person), identity in zip(people.items(), prepared.injection.identities, strict=True):
            init = self._areas.points(settings, scene, number)
            persons.append(identity_net.person(identity.tokens, person.seen, init, identity.mask, scene))
        asked = settings.identity_net
        return replace(prepared, net=identity_net.Net(path, asked.weight, asked.end, tuple(persons)))

    def _people(
        self, settings: Settings, checkpoint: Checkpoint, variant: str
    ) -> tuple[dict[int, Person], tuple[str, ...]]:
        if not settings.references:
            return {0: Person(Features(), (), (), "auto", (), ())}, ()
        detector = self._features.detector(checkpoint, variant)
        people: dict[int, Person] = {}
        notes: list[str] = []
        for number in range(settings.identities):
            seen, left_out = self.photos.look(settings, number, detector)
            seen, treated = self._editing.treated(seen, settings)
            notes += (*left_out, *treated)
            latents = self.photos.latents(settings, number)
            if seen or latents:
                people[number] = self._features.read(seen, settings, checkpoint, variant, latents)
                notes += people[number].notes
            elif settings.no_face == "stop":
                raise FaceError(f"All photos of person {number} have weight 0", "Raise one, or remove the person.")
        return people, tuple(notes)

    def _is_personal(self, name: str) -> bool:
        """Whether a model is a personalised identity, which takes no photo."""
        try:
            return self.checkpoint(name).family == personal.FAMILY
        except WeightsError:
            return False

    def _on_text(
        self, settings: Settings, scene: Scene, checkpoint: Checkpoint, variant: str, people: Mapping[int, Person]
    ) -> dict[int, TextIdentity | None]:
        """What each person changes on the text side; a personalised identity beside the model is the first's."""
        options = _options(settings, variant, scene.encode)
        texts = {number: self._texts.of(checkpoint, one.features, options) for number, one in people.items()}
        if settings.text_side.personal and checkpoint.family != personal.FAMILY:
            own = self.checkpoint(settings.text_side.personal)
            if own.family != personal.FAMILY:
                problem = f"{own.path.name} is {own.title}, not a personalised identity"
                raise SettingsError("text_side.personal", problem, "Choose it as the model instead.")
            _require_base(own, scene, "text_side.personal")
            first = min(texts)
            texts[first] = joined(texts[first], self._texts.of(own, Features(), options))
        return texts


def _options(settings: Settings, variant: str, encode: Encode | None) -> TokenOptions:
    structure = 1.0 if settings.structure is None else settings.structure
    return TokenOptions(variant != "faceid-plus", structure, encode)


def _require_base(checkpoint: Checkpoint, scene: Scene, field: str) -> None:
    if checkpoint.base != scene.base:
        raise SettingsError(
            field,
            f"{checkpoint.path.name} is made for {BASE_NAMES[checkpoint.base]}, the loaded checkpoint is "
            f"{BASE_NAMES[scene.base]}",
            "Choose an adapter for this base, or another checkpoint.",
        )


def _off(notes: Sequence[str]) -> Prepared:
    return Prepared(Injection(()), Explanation(active=False, notes=tuple(notes)))


def _joined(
    edit: Edit,
    checkpoint: Checkpoint,
    variant: str,
    people: dict[int, Person],
    texts: Mapping[int, TextIdentity | None],
    areas: dict[int, Area],
    tracker: Tracker | None,
    notes: Sequence[str],
    scene: Scene,
    by_words: Mapping[int, sharing.Shared],
) -> Prepared:
    settings = edit.settings
    way = way_of(settings, checkpoint)
    options = _options(settings, variant, scene.encode)
    identities: list[Identity] = []
    told: list[PersonExplanation] = []
    tracks = {} if tracker is None else {one.number: one for one in tracker.people}
    for number, person in people.items():
        options = replace(options, person=number)
        tokens, area = checkpoint.tokens(person.features, options), areas[number]
        weight = settings.weight * area.weight
        on_text = text_side(settings, texts[number], area.weight)
        one = Identity(checkpoint.adapter, tokens, weight, None, way.mode, way.zero_tokens, text=on_text, person=number)
        mine = by_words.get(number)
        one = replace(one, entity=None if mine is None else mine.entity, reference=person.reference)
        followed = tracks.get(number)
        if followed is None:
            identities.append(replace(one, mask=area.mask, free=area.free))
        else:
            identities.append(replace(one, track=followed.track))
        region = area.source if followed is None else following_words(area, followed, settings.tracking)
        told.append(
            PersonExplanation(
                number,
                person.photos,
                person.combine,
                person.encoders,
                len(tokens.cond),
                region if mine is None else mine.told(region),
                round(area.coverage if followed is None else followed.coverage, 4),
                in_words(settings, number, on_text),
                person.looks_at,
            )
        )
    # Where nothing but a found face gets the identity, the layout is left to the text without a delay.
    waiting = settings.tracking.fallback != "full"
    known = all(area.known or (number in tracks and waiting) for number, area in areas.items())
    schedule = _schedule(settings, checkpoint, known)
    injection = Injection(
        tuple(identities),
        schedule,
        {"down": settings.gate.down, "middle": settings.gate.middle, "up": settings.gate.up},
        TextPathway(settings.text_weight, settings.text_emphasis, settings.strict_text_region, settings.free_parts),
        tuple((entry, settings.lora_weight) for entry in checkpoint.lora),
        sharing="words" if by_words else "regions",
    )
    injection = with_form(settings, injection, scene.bytes_per_number)
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
            else round(megabytes(injection.form_used, injection.identities, scene.bytes_per_number), 1),
            weight=settings.weight,
            span=(schedule.start, schedule.end),
            lora=settings.lora_weight if checkpoint.lora else 0.0,
            persons=tuple(told),
            notes=(*notes, *sharing.doubts(by_words), *_why_idle(injection), *_nothing_free(settings, areas, tracker)),
            mode=settings.mode,
            mode_lines=edit.lines,
            words=edit.words,
        ),
        tracker,
        edit,
        spoken=tuple(spoken_of(settings, one.person, one.on_text) for one in identities if one.on_text is not None),
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


def _schedule(settings: Settings, checkpoint: Checkpoint, known: bool) -> Schedule:
    automatic = checkpoint.start
    if automatic is None:
        automatic = 0.0 if known else _UNKNOWN_START
    start = automatic if settings.span.start is None else settings.span.start
    return Schedule(
        min(start, settings.span.end),
        settings.span.end,
        settings.curve.points,
        {"down": settings.levels.down, "middle": settings.levels.middle, "up": settings.levels.up},
        dict(settings.levels.sites),
    )
