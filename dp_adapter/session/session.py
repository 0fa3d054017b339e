"""A session: from a request and a scene to what a host needs, with everything that is kept between generations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dp_adapter.core.injection import Injection
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.pictures.dropped_photos import DroppedPhotos
from dp_adapter.identity.saved.identity_library import IdentityLibrary
from dp_adapter.identity.saved.saved_identity import SavedIdentity
from dp_adapter.modes import Modes
from dp_adapter.session.assemble import Assembler
from dp_adapter.session.explain import explain, explain_absence
from dp_adapter.session.explanation import Explanation
from dp_adapter.session.loaded_models import LoadedModels
from dp_adapter.session.photos.features import FeatureReader
from dp_adapter.session.photos.latents import Latents
from dp_adapter.session.photos.photo_edits import PhotoEdits, Restorers, no_restorers
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.photos.save_identity import encode_identity
from dp_adapter.session.photos.w_plus import Directions
from dp_adapter.session.place import place
from dp_adapter.session.prepared import Prepared
from dp_adapter.session.regions.tracker import Tracker
from dp_adapter.session.resolve import Resolver
from dp_adapter.session.scene import Scene
from dp_adapter.session.see import PersonReader
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint
from dp_adapter.weights.library import Library


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
        self.dropped_photos = DroppedPhotos(photos_mb * 2**20)
        self.identities = IdentityLibrary(roots)
        self.modes = Modes(roots)
        latents = Latents(roots, paths_allowed)
        self.photos = ReferencePhotos(self.encoders, paths_allowed, self.dropped_photos, self.identities, latents)
        self._models = LoadedModels(self.library, checkpoints, checkpoints_mb)
        self._resolver = Resolver(self.modes, self._models, self.library, self.photos, self.encoders)
        features = FeatureReader(self.encoders, Directions(roots))
        self._person_reader = PersonReader(self.photos, self.encoders, features, PhotoEdits(restorers))
        self._assembler = Assembler(self._models, self.library)

    def release(self) -> None:
        """Gives all memory back but the dropped photos', which are nowhere else; the next generation loads again."""
        for holder in (self.photos, self._person_reader, self._assembler, self._models):
            holder.forget()
        self.encoders.release()

    def checkpoint(self, name: str) -> Checkpoint:
        """The adapter file of this name, read once while it stays unchanged.

        Raises:
            WeightsError: there is no such file, or it is not an adapter.
        """
        return self._models.checkpoint(name)

    def prepare(self, settings: Settings, scene: Scene, before: Tracker | None = None) -> Prepared:
        """Everything that one generation needs, in five stages; each takes what those before it made.

        Args:
            before: of the first pass, from whose regions a hires pass starts.

        Raises:
            DPAdapterError: in words, before anything is sampled; nothing stays behind.
        """
        if not settings.enabled:
            return Prepared(Injection(()), Explanation(active=False))
        try:
            return self._prepare(settings, scene, before)
        finally:
            self.photos.forget_pictures()

    def _prepare(self, settings: Settings, scene: Scene, before: Tracker | None) -> Prepared:
        resolved = self._resolver.resolve(settings, scene)
        seen = self._person_reader.see(resolved, scene)
        if not seen.persons:
            return Prepared(Injection(()), explain_absence(resolved, seen))
        placed = place(resolved, seen, scene, self.photos, self.encoders, before)
        assembly = self._assembler.assemble(resolved, seen, placed, scene)
        return Prepared(
            injection=assembly.injection,
            explanation=explain(resolved, seen, placed, assembly, scene.bytes_per_number),
            tracker=placed.tracker,
            mode=assembly.mode,
            net=assembly.net,
            prompt_persons=assembly.prompt_persons,
        )

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
        try:
            encoded = encode_identity(name, settings, self.photos, self.encoders, self.library)
        finally:
            self.photos.forget_pictures()
        return self.identities.save(encoded, replace)
