"""Second stage: the photos of a request are looked at, and persons with features come of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dp_adapter import naming
from dp_adapter.core.types import Features
from dp_adapter.errors import FaceError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.session.photos.features import FeatureReader, Person
from dp_adapter.session.photos.photo_edits import PhotoEdits
from dp_adapter.session.photos.reference_attention import add_reference_photos
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.resolve import ResolvedRequest
from dp_adapter.session.scene import Scene


@dataclass(frozen=True)
class SeenPersons:
    """The persons whose photos can be used.

    Attributes:
        persons: by their number in the request.
        left_out: which photos are not used, a sentence each.
        notes: on the others.
    """

    persons: Mapping[int, Person]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class PersonReader:
    """Sees the persons of one session's requests; what the encoders saw is kept by content."""

    def __init__(
        self, photos: ReferencePhotos, encoders: EncoderPool, features: FeatureReader, edits: PhotoEdits
    ) -> None:
        self._photos = photos
        self._encoders = encoders
        self._features = features
        self._edits = edits

    def forget(self) -> None:
        self._features.forget()
        self._edits.forget()

    def see(self, resolved: ResolvedRequest, scene: Scene) -> SeenPersons:
        """
        Raises:
            FaceError, PictureError, IdentityError, SettingsError: a photo cannot be used, or lacks what is asked for.
            CatalogError, MissingDependencyError: a network that the checkpoint needs is not here.
        """
        settings = resolved.settings
        # Without a photo the checkpoint is a personalised identity.
        seen = self._look(resolved) if settings.references else SeenPersons({0: Person(Features())})
        if not seen.persons or settings.reference_attention.weight == 0:
            return seen
        persons = add_reference_photos(seen.persons, settings.reference_attention, scene, self._encoders)
        return SeenPersons(persons, seen.left_out, seen.notes)

    def _look(self, resolved: ResolvedRequest) -> SeenPersons:
        settings, checkpoint, variant = resolved.settings, resolved.checkpoint, resolved.variant
        detector = self._features.detector(checkpoint, variant)
        persons: dict[int, Person] = {}
        left_out: list[str] = []
        notes: list[str] = []
        for number in range(settings.identities):
            photos, without = self._photos.look(settings, number, detector)
            left_out += without
            photos, edited = self._edits.apply(photos, settings.retouch, settings.restorer)
            notes += edited
            latents = self._photos.latents(settings, number)
            if photos or latents:
                persons[number] = self._features.read(
                    photos, latents, checkpoint, variant, settings.combine, settings.w_plus
                )
                notes += persons[number].notes
            elif settings.no_face == "stop":
                raise FaceError(
                    f"All photos of {naming.person(number)} have weight 0", "Raise one, or remove the person."
                )
        return SeenPersons(persons, tuple(left_out), tuple(notes))
