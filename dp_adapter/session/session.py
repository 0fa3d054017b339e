"""A session: from a request and a scene to what a host needs, with everything that is kept between generations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dp_adapter import naming
from dp_adapter.cache import Cache
from dp_adapter.core.res_adapter import SizeCompanion
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.core.types import Features
from dp_adapter.errors import FaceError, SettingsError, WeightsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.pictures.dropped_photos import DroppedPhotos
from dp_adapter.identity.saved.identity_library import IdentityLibrary
from dp_adapter.identity.saved.saved_identity import SavedIdentity
from dp_adapter.modes import Modes
from dp_adapter.session.assembly import identity_net
from dp_adapter.session.assembly.injection import Prepared, off, options_of, prepared_of, used_in
from dp_adapter.session.assembly.text_identities import TextIdentities, joined
from dp_adapter.session.assembly.variants import variant_of
from dp_adapter.session.checkpoint_choices import with_parts
from dp_adapter.session.photos import reference_attention
from dp_adapter.session.photos.features import FeatureReader, Person
from dp_adapter.session.photos.latents import Latents
from dp_adapter.session.photos.photo_edits import PhotoEdits, Restorers, no_restorers
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.photos.save_identity import embedded
from dp_adapter.session.photos.w_plus import Directions
from dp_adapter.session.regions import sharing_by_words
from dp_adapter.session.regions.requested_regions import RequestedRegions
from dp_adapter.session.regions.tracker import Tracker
from dp_adapter.session.regions.tracker_setup import tracker_of
from dp_adapter.session.scene import Scene
from dp_adapter.settings import Settings
from dp_adapter.weights import formats, res_adapter
from dp_adapter.weights.checkpoint import BASE_NAMES, Checkpoint
from dp_adapter.weights.families import personal
from dp_adapter.weights.library import Library
from dp_adapter.weights.res_adapter import ResAdapter


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
        self.encoders = EncoderPool(roots, encoder_folders, device)
        self.library = Library(roots, paths_allowed, folders)
        self.shelf = DroppedPhotos(photos_mb * 2**20)
        self.identities = IdentityLibrary(roots)
        latents = Latents(roots, paths_allowed)
        self.photos = ReferencePhotos(self.encoders, paths_allowed, self.shelf, self.identities, latents)
        self._features = FeatureReader(self.encoders, Directions(roots))
        self._texts = TextIdentities()
        self._areas = RequestedRegions(self.photos, self.encoders)
        self.modes = Modes(roots)
        self._editing = PhotoEdits(self.modes, self.photos, self.encoders, restorers)
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
            return off(())
        if not settings.references and not self._is_personal(settings.model):
            raise SettingsError(
                "references", "there is no photo", "Give a photo of the person, or disable the adapter."
            )
        edit = self._editing.edit(settings, scene)
        asked, settings = settings, edit.settings
        checkpoint = self.checkpoint(settings.model)
        _require_base(checkpoint, scene, "model")
        variant = variant_of(settings, checkpoint, self.library)
        settings, told = with_parts(settings, checkpoint)
        edit = replace(edit, settings=settings)
        people, left_out, notes = self._people(settings, checkpoint, variant)
        notes = (*told, *left_out, *notes)
        if not people:
            notes = (*notes, "No photo is left to use, so the picture was made without the adapter.")
            return off(notes, "no photo is left to use", left_out)
        people = reference_attention.with_photos(people, settings, scene, self.encoders)
        companion = self._companion(settings, scene)
        by_words: dict[int, sharing_by_words.Shared] = {}
        if sharing_by_words.sharing_of(settings, checkpoint, len(people)) == "words":
            settings, placed = sharing_by_words.everywhere(settings, scene, tuple(people))
            by_words = sharing_by_words.shared(settings, scene, placed, tuple(people))
        areas = {number: self._areas.of(settings, scene, number) for number in people}
        areas = sharing_by_words.delayed(areas, by_words, checkpoint)
        seen = {number: person.seen for number, person in people.items()}
        tracker = tracker_of(settings, scene, self._areas, areas, seen, self.photos, self.encoders, before)
        texts, unsaid = self._on_text(settings, scene, checkpoint, variant, people)
        notes = (*notes, *unsaid)
        prepared = prepared_of(edit, checkpoint, variant, people, texts, areas, tracker, notes, scene, by_words)
        explained = replace(prepared.explanation, left_out=left_out, used=used_in(asked, edit, checkpoint, variant))
        injection = replace(prepared.injection, companion=companion)
        prepared = replace(prepared, injection=injection, explanation=explained)
        if variant != identity_net.VARIANT or not prepared.injection.active:
            return prepared
        return self._with_net(settings, scene, people, prepared)

    def save_identity(self, name: str, settings: Settings, replace: bool = False) -> SavedIdentity:
        """Saves the first person of a request under a name, as every encoder that is here sees them.

        ``notes`` name the encoders that are not.

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
        told = prepared.explanation
        if path is None:
            used = {**told.used, "identity_net.use": "off"} if notes else told.used
            return replace(prepared, explanation=replace(told, notes=(*told.notes, *notes), used=used))
        persons: list[identity_net.NetPerson] = []
        for (number, person), identity in zip(people.items(), prepared.injection.identities, strict=True):
            init = self._areas.points(settings, scene, number)
            persons.append(identity_net.person(identity.tokens, person.seen, init, identity.mask, scene))
        asked = settings.identity_net
        net = identity_net.Net(path, asked.weight, asked.end, tuple(persons))
        told = replace(told, used={**told.used, "identity_net.model": path.name})
        return replace(prepared, net=net, explanation=told)

    def _people(
        self, settings: Settings, checkpoint: Checkpoint, variant: str
    ) -> tuple[dict[int, Person], tuple[str, ...], tuple[str, ...]]:
        """The persons whose photos can be used; which photos are left out; notes on the others."""
        if not settings.references:
            return {0: Person(Features(), (), (), "auto", (), ())}, (), ()
        detector = self._features.detector(checkpoint, variant)
        people: dict[int, Person] = {}
        left_out: list[str] = []
        notes: list[str] = []
        for number in range(settings.identities):
            seen, without = self.photos.look(settings, number, detector)
            left_out += without
            seen, treated = self._editing.treated(seen, settings)
            notes += treated
            latents = self.photos.latents(settings, number)
            if seen or latents:
                people[number] = self._features.read(seen, settings, checkpoint, variant, latents)
                notes += people[number].notes
            elif settings.no_face == "stop":
                raise FaceError(
                    f"All photos of {naming.person(number)} have weight 0", "Raise one, or remove the person."
                )
        return people, tuple(left_out), tuple(notes)

    def _is_personal(self, name: str) -> bool:
        """Whether a model is a personalised identity, which takes no photo."""
        try:
            return self.checkpoint(name).family == personal.FAMILY
        except WeightsError:
            return False

    def _on_text(
        self, settings: Settings, scene: Scene, checkpoint: Checkpoint, variant: str, people: Mapping[int, Person]
    ) -> tuple[dict[int, TextIdentity | None], tuple[str, ...]]:
        """What each person changes on the text side, and notes; a personalised identity beside it is the first's."""
        options = options_of(settings, variant, scene.encode)
        texts = {number: self._texts.of(checkpoint, one.features, options) for number, one in people.items()}
        if settings.text_side.personal and checkpoint.family != personal.FAMILY:
            own = self.checkpoint(settings.text_side.personal)
            if own.family != personal.FAMILY:
                problem = f"{own.path.name} is {own.title}, not a personalised identity"
                raise SettingsError("text_side.personal", problem, "Choose it as the model instead.")
            _require_base(own, scene, "text_side.personal")
            first = min(texts)
            person = self._texts.of(own, Features(), options)
            both = joined(texts[first], person)
            if person is not None and both is not None and person.learned is not None and both.learned is None:
                note = (
                    f"The learned words of {own.path.name} stay out: {checkpoint.title} speaks through the same word."
                )
                return {**texts, first: both}, (note,)
            texts[first] = both
        return texts, ()


def _require_base(checkpoint: Checkpoint, scene: Scene, field: str) -> None:
    if checkpoint.base != scene.base:
        raise SettingsError(
            field,
            f"{checkpoint.path.name} is made for {BASE_NAMES[checkpoint.base]}, the loaded checkpoint is "
            f"{BASE_NAMES[scene.base]}",
            "Choose an adapter for this base, or another checkpoint.",
        )
