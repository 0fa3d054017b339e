"""Reference photos → chosen faces. What was seen is kept by content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dp_adapter import naming
from dp_adapter.cache import Cache
from dp_adapter.errors import FaceError, IdentityError, PictureError, SettingsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.detector import Detector
from dp_adapter.identity.faces.face import Choice, Face, choose
from dp_adapter.identity.faces.face_quality import Quality, quality
from dp_adapter.identity.pictures.dropped_photos import DroppedPhotos
from dp_adapter.identity.pictures.picture_files import Coverage, Picture, digest, load, load_mask, load_picture
from dp_adapter.identity.pictures.picture_sources import decode_inline, read_as
from dp_adapter.identity.saved.identity_library import IdentityLibrary
from dp_adapter.identity.saved.saved_identity import SavedIdentity
from dp_adapter.session.explanation import Photo
from dp_adapter.session.photos.latents import LATENT, Latent, Latents
from dp_adapter.session.photos.saved_photos import IDENTITY, SavedReference, mean_direction, open_saved
from dp_adapter.settings import FaceChoice, Reference, Settings

Floats = NDArray[np.float32]
T = TypeVar("T")
PHOTO = "photo:"
_AT_HAND = 50 * 2**20  # bytes of decoded photos that are kept while a request is read


@dataclass(frozen=True, eq=False)
class SeenPhoto:
    """A reference photo with the face that was chosen in it.

    Attributes:
        open: gives the photo, decoded anew where it is not at hand: many large ones together would fill the memory.
        digest: of the photo as it was given.
        number: in the request's list.
        treated: in words, what was done to it since; the face is where it was.
    """

    open: Callable[[], Picture]
    digest: str
    faces: tuple[Face, ...]
    face: Face
    quality: Quality
    weight: float
    number: int = 0
    treated: str = ""

    @property
    def picture(self) -> Picture:
        """The photo [H, W, 3]."""
        return self.open()

    def describe(self, agreement: float | None) -> Photo:
        x1, y1, x2, y2 = self.face.box.tolist()
        chosen = next(i for i, face in enumerate(self.faces) if np.array_equal(face.box, self.face.box))
        score = round(self.quality.score, 3)
        return Photo(
            self.digest[:16],
            len(self.faces),
            chosen,
            (x1, y1, x2, y2),
            score,
            self.quality.warnings(),
            agreement,
            number=self.number,
        )


Known: TypeAlias = "SeenPhoto | SavedReference"


def used(settings: Settings, identity: int) -> list[int]:
    """Which references count for one person."""
    return [n for n, one in enumerate(settings.references) if one.identity == identity and one.weight > 0]


def words_of(references: Sequence[Reference], person: int) -> str:
    """The words of the prompt that mean a person, of the first of their photos that has any; empty for none."""
    return next(filter(None, (one.words.strip() for one in references if one.identity == person)), "")


class ReferencePhotos:
    """Reads photos and saved identities and finds faces for one session.

    Args:
        paths_allowed: whether a request may name files.
        shelf: the photos that ``photo:HASH`` names.
        identities: the ones that ``identity:NAME`` names.
        latents: the ones that ``latent:NAME`` names.
        limit: photos whose faces and vectors are remembered.
    """

    def __init__(
        self,
        encoders: EncoderPool,
        paths_allowed: bool,
        shelf: DroppedPhotos,
        identities: IdentityLibrary,
        latents: Latents,
        limit: int = 64,
    ) -> None:
        self._encoders = encoders
        self._paths_allowed = paths_allowed
        self._shelf = shelf
        self._identities = identities
        self._latents = latents
        self._faces: Cache[tuple[Face, ...]] = Cache(limit)
        self._pictures: Cache[Picture] = Cache(limit, _AT_HAND)
        self._saved: Cache[SavedIdentity] = Cache(4)  # one is some MB, of many photos some hundred

    def forget(self) -> None:
        """Lets go what was found; the shelf keeps its photos, which cannot be found again."""
        self._faces.clear()
        self._pictures.clear()
        self._saved.clear()
        self._latents.forget()

    def forget_pictures(self) -> None:
        """Lets the decoded photos go; who asks for one again has it decoded."""
        self._pictures.clear()

    def read(self, source: str, field: str) -> Picture:
        """The photograph that a field of the request names.

        Raises:
            PictureError, SettingsError: it cannot be read; names the field.
        """
        return self._read(source, field, load_picture)

    def read_mask(self, source: str, field: str) -> Coverage:
        """How far each pixel [H, W] belongs to the mask that a field of the request names. Raises as ``read``."""
        return self._read(source, field, load_mask)

    def _read(self, source: str, field: str, read: Callable[[Path | bytes], T]) -> T:
        if source.startswith(LATENT):
            raise PictureError(f"{field}: '{source[:80]}' is a latent for W+ adapters, not a picture", "Give a photo.")
        try:
            if source.startswith(PHOTO):
                return self._dropped(source.removeprefix(PHOTO), read)
            return read_as(source, self._paths_allowed, read)
        except PictureError as error:
            raise PictureError(f"{field}: {error.problem}", error.hint) from error

    def keep(self, source: str, field: str) -> str:
        """Puts a picture of a request on the shelf and returns its hash.

        Raises:
            PictureError: it is no picture, or only names one; says which field.
        """
        try:
            data = decode_inline(source)
            if data is None:
                raise PictureError(
                    "a picture in a request must be base64 or a data URL", "Paths are not read from requests."
                )
            return self._shelf.add(data, mask=field.endswith("mask"))
        except PictureError as error:
            raise PictureError(f"{field}: {error.problem}", error.hint) from error

    def saved(self, source: str, field: str) -> SavedIdentity:
        """The identity that ``identity:NAME`` in a field of the request names.

        Raises:
            IdentityError: there is none, or its file cannot be used; names the field.
        """
        name = source.removeprefix(IDENTITY)
        try:
            return self._saved.get(self._identities.state(name), lambda: self._identities.load(name))
        except IdentityError as error:
            raise IdentityError(f"{field}: {error.problem}", error.hint) from error

    def _dropped(self, name: str, read: Callable[[bytes], T]) -> T:
        try:
            return self._shelf.read(name, read)
        except PictureError as error:
            saved = self._identities.with_photo(name)
            if saved is None:
                raise
            hint = f"Drop it again, or use the saved identity '{saved}', which was made with it."
            raise PictureError(error.problem, hint) from error

    def faces(self, picture: Picture, detector: Detector) -> tuple[Face, ...]:
        """All faces of a picture, left to right."""

        def find() -> tuple[Face, ...]:
            return tuple(sorted(detector.detect(picture), key=lambda face: float(face.centre[0])))

        return self._faces.get((digest(picture), detector.name), find)

    def see_all(self, picture: Picture, detector: Detector) -> list[SeenPhoto]:
        """The picture once for each of its faces, left to right, as if that one had been chosen."""
        faces, name = self.faces(picture, detector), digest(picture)
        return [SeenPhoto(lambda: picture, name, faces, face, quality(picture, face), 1.0) for face in faces]

    def look(self, settings: Settings, identity: int, detector: Detector) -> tuple[list[Known], list[str]]:
        """The photos of one person, those of saved identities included, and notes on those that were left out.

        Raises:
            FaceError: a photo lacks the asked-for face, and the settings say to stop.
            PictureError: a photo cannot be read.
            IdentityError: a saved identity cannot be read.
            SettingsError: the face to look for is not there, or an identity was saved without the detector.
        """
        seen: list[Known] = []
        notes: list[str] = []
        for number in used(settings, identity):
            reference = settings.references[number]
            if reference.image.startswith(IDENTITY):
                field = f"references[{number}].image"
                saved = self.saved(reference.image, field)
                seen += open_saved(saved, field, reference.weight, detector.name, number)
            elif (
                not reference.image.startswith(LATENT)
                and (one := self.look_at(settings, number, detector, notes)) is not None
            ):
                seen.append(one)
        return seen, notes

    def latents(self, settings: Settings, identity: int) -> list[Latent]:
        """The latents of one person. Raises SettingsError where one cannot be read."""
        return [
            replace(self._latents.load(one.image, field, one.weight), number=number)
            for number in used(settings, identity)
            if settings.references[number].image.startswith(LATENT)
            for one, field in ((settings.references[number], f"references[{number}].image"),)
        ]

    def look_at(self, settings: Settings, number: int, detector: Detector, notes: list[str]) -> SeenPhoto | None:
        """One photo; None, and a note, where it lacks the asked-for face and the settings say to go on.

        Raises as `look`.
        """
        reference = settings.references[number]
        try:
            found = self._look(reference, reference.face or settings.face, f"references[{number}]", detector)
            return replace(found, number=number)
        except FaceError as error:
            if settings.no_face == "stop":
                raise FaceError(f"references[{number}]: {error.problem}", error.hint) from error
            notes.append(f"{naming.capitalise(naming.photo(number))} was left out: {error.problem}.")
            return None

    def _look(self, reference: Reference, choice: FaceChoice, name: str, detector: Detector) -> SeenPhoto:
        field = f"{name}.image"
        loaded = self._read(reference.image, field, load)
        picture, content, size = loaded.picture, loaded.digest, loaded.picture.nbytes
        faces = self.faces(picture, detector)
        # A number means the faces as they are shown, small ones included.
        least = 0 if choice.choice == "index" else choice.min_size
        large: Sequence[Face] = [face for face in faces if face.size >= least]
        if faces and not large:
            raise FaceError(f"All faces are smaller than {choice.min_size} px", "Lower the least size of a face.")
        like = None
        if choice.choice == "like":
            like = self._like(f"{name}.face.like" if reference.face else "face.like", choice.like, detector)
            large = [Face(face.box, face.points, face.score, self.sface(picture, face)) for face in large]
        face = choose(large, cast(Choice, choice.choice), choice.index, like, (picture.shape[0], picture.shape[1]))
        if face.size < choice.min_size:
            raise FaceError(
                f"{naming.capitalise(naming.face(choice.index))} is smaller than {choice.min_size} px",
                "Lower the least size of a face.",
            )
        self._pictures.get(content, lambda: picture, size)
        return SeenPhoto(
            lambda: self._pictures.get(content, lambda: self.read(reference.image, field), size),
            content,
            faces,
            face,
            quality(picture, face),
            reference.weight,
        )

    def _like(self, field: str, source: str, detector: Detector) -> Floats:
        """The vector of the face to look for; its absence is no photo's fault, so it stops the job."""
        if source.startswith(IDENTITY):
            return mean_direction(
                self.saved(source, field), field, self._encoders.yunet.name, self._encoders.sface.name
            )
        target = self.read(source, field)
        faces = self.faces(target, detector)
        if not faces:
            raise SettingsError(field, "no face was found in this picture", "Give one that shows the person.")
        return self.sface(target, choose(faces))

    def judged(self, one: Known) -> Floats:
        """The shipped encoder's vector [128] of the chosen face, for comparing faces."""
        if isinstance(one, SavedReference):
            return one.face(self._encoders.sface.name)
        return self.sface(one.picture, one.face)

    def direction(self, seen: Sequence[Known]) -> Floats:
        """The mean direction [128] of a person's photos by the shipped encoder.

        Raises:
            SettingsError: a saved identity lacks its vectors.
        """
        mean = np.mean([self.judged(one) for one in seen], axis=0)
        return mean / np.linalg.norm(mean)

    def sface(self, picture: Picture, face: Face) -> Floats:
        """The shipped encoder's vector [128], for comparing faces."""
        return self._encoders.sface.embed(picture, face)
