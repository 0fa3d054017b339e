"""Reference photos → chosen faces. What was seen is kept by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from dp_adapter.cache import Cache
from dp_adapter.errors import FaceError, PictureError, SettingsError
from dp_adapter.identity.detect import Detector
from dp_adapter.identity.encoders import Encoders
from dp_adapter.identity.face import Choice, Face, choose
from dp_adapter.identity.pictures import Picture, digest
from dp_adapter.identity.quality import Quality, quality
from dp_adapter.identity.sources import read_source
from dp_adapter.session.explain import Photo
from dp_adapter.settings import FaceChoice, Reference, Settings

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Seen:
    """A reference photo with the face that was chosen in it."""

    picture: Picture
    digest: str
    faces: tuple[Face, ...]
    face: Face
    quality: Quality
    weight: float

    def described(self, agreement: float | None) -> Photo:
        x1, y1, x2, y2 = self.face.box.tolist()
        chosen = next(i for i, face in enumerate(self.faces) if np.array_equal(face.box, self.face.box))
        score = round(self.quality.score, 3)
        return Photo(
            self.digest[:16], len(self.faces), chosen, (x1, y1, x2, y2), score, self.quality.warnings(), agreement
        )


class Photos:
    """Reads photos and finds faces for one session.

    Args:
        paths_allowed: whether a request may name files.
        limit: photos whose faces and vectors are remembered.
    """

    def __init__(self, encoders: Encoders, paths_allowed: bool, limit: int = 64) -> None:
        self._encoders = encoders
        self._paths_allowed = paths_allowed
        self._faces: Cache[tuple[Face, ...]] = Cache(limit)

    def forget(self) -> None:
        self._faces.clear()

    def read(self, source: str, field: str) -> Picture:
        """The picture that a field of the request names.

        Raises:
            PictureError, SettingsError: it cannot be read; names the field.
        """
        if source.startswith("identity:"):
            raise SettingsError(field, "saved identities are not supported yet", "Give the photo itself.")
        try:
            return read_source(source, self._paths_allowed)
        except PictureError as error:
            raise PictureError(f"{field}: {error.problem}", error.hint) from error

    def faces(self, picture: Picture, detector: Detector) -> tuple[Face, ...]:
        """All faces of a picture, left to right."""

        def find() -> tuple[Face, ...]:
            return tuple(sorted(detector.detect(picture), key=lambda face: float(face.centre[0])))

        return self._faces.get((digest(picture), detector.name), find)

    def look(self, settings: Settings, identity: int, detector: Detector) -> tuple[list[Seen], list[str]]:
        """The photos of one person, and notes on those that were left out.

        Raises:
            FaceError: a photo lacks the asked-for face, and the settings say to stop.
            PictureError: a photo cannot be read.
            SettingsError: the picture of the face to look for shows none.
        """
        seen: list[Seen] = []
        notes: list[str] = []
        for number, reference in enumerate(settings.references):
            if reference.identity != identity or reference.weight == 0:
                continue
            try:
                seen.append(self._look(reference, reference.face or settings.face, f"references[{number}]", detector))
            except FaceError as error:
                if settings.no_face == "stop":
                    raise FaceError(f"references[{number}]: {error.problem}", error.hint) from error
                notes.append(f"Photo {number} was left out: {error.problem}.")
        return seen, notes

    def _look(self, reference: Reference, choice: FaceChoice, name: str, detector: Detector) -> Seen:
        picture = self.read(reference.image, f"{name}.image")
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
                f"Face {choice.index} is smaller than {choice.min_size} px", "Lower the least size of a face."
            )
        return Seen(picture, digest(picture), faces, face, quality(picture, face), reference.weight)

    def _like(self, field: str, source: str, detector: Detector) -> Floats:
        """The vector of the face to look for; its absence is no photo's fault, so it stops the job."""
        target = self.read(source, field)
        faces = self.faces(target, detector)
        if not faces:
            raise SettingsError(field, "no face was found in this picture", "Give one that shows the person.")
        return self.sface(target, choose(faces))

    def sface(self, picture: Picture, face: Face) -> Floats:
        """The shipped encoder's vector [128], for comparing faces."""
        return self._encoders.sface.embed(picture, face)
