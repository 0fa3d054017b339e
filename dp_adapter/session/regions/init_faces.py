"""Which face of an init picture is whose: by likeness to the photos where that tells, else from left to right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dp_adapter import naming
from dp_adapter.cache import Cache
from dp_adapter.errors import DPAdapterError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.preview_faces import PreviewFinder
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.regions.face_matching import FacePosition, recognise
from dp_adapter.session.scene import Picture
from dp_adapter.settings import Settings

Drawn = Callable[[int], "Tensor | None"]


@dataclass(frozen=True, eq=False)
class FacesOfPicture:
    """The faces of one init picture.

    Attributes:
        faces: all of them, from left to right.
        whose: by person, the number of their face.
        alike: persons whose face was told by likeness.
    """

    faces: tuple[Face, ...]
    whose: Mapping[int, int]
    alike: frozenset[int]

    def told(self, person: int) -> str:
        """Where a person's region comes from, in words."""
        why = ", the most like the photos" if person in self.alike else ""
        return f"{naming.face(self.whose[person])} of the init picture, counted from the left{why}"

    def places(self, picture: Picture) -> dict[int, FacePosition]:
        return {person: FacePosition.of(self.faces[face], picture.shape) for person, face in self.whose.items()}


class InitFaces:
    """Looks at init pictures for one session.

    Args:
        finder: finds faces in place of the usual detector, as in a forming picture.
    """

    def __init__(
        self, photos: ReferencePhotos, encoders: EncoderPool, finder: PreviewFinder | None, limit: int = 16
    ) -> None:
        self._photos = photos
        self._encoders = encoders
        self._finder = finder
        # By the objects, which are kept beside the answer: a request asks once for every person.
        self._kept: Cache[tuple[Settings, Picture, FacesOfPicture]] = Cache(limit)

    def forget(self) -> None:
        self._kept.clear()

    def of(self, settings: Settings, picture: Picture, drawn: Drawn) -> FacesOfPicture:
        """Whose the faces of a picture are.

        Args:
            drawn: the region [h, w] of a person who looks for no face, or None: a face in there is that person's.
        """

        def look() -> tuple[Settings, Picture, FacesOfPicture]:
            return settings, picture, self._look(settings, picture, drawn)

        return self._kept.get((id(settings), id(picture)), look)[2]

    def _look(self, settings: Settings, picture: Picture, drawn: Drawn) -> FacesOfPicture:
        faces = self._photos.faces(picture, self._finder or self._encoders.yunet)
        if not settings.references:  # nobody to be like: the regions alone are looked at
            return FacesOfPicture(faces, {number: number for number in range(len(faces))}, frozenset())
        persons = looking(settings)
        taken = [mask for n in range(settings.identities) if n not in persons and (mask := drawn(n)) is not None]
        free = [n for n, face in enumerate(faces) if not any(inside(face, picture, mask) for mask in taken)]
        found, alike = recognise(
            [FacePosition.of(faces[n], picture.shape) for n in free],
            persons,
            self._likeness(settings, persons, picture, [faces[n] for n in free]),
        )
        return FacesOfPicture(faces, {person: free[place] for person, place in found.items()}, alike)

    def _likeness(
        self, settings: Settings, persons: Sequence[int], picture: Picture, faces: Sequence[Face]
    ) -> Floats | None:
        """[persons, faces] cosines by the shipped encoder; zeros for persons that it does not know."""
        if not faces or len(persons) == len(faces) == 1:
            return None
        seen = np.stack([self._photos.sface(picture, face) for face in faces])  # [F, 128]
        return np.stack([self._cosines(settings, person, seen) for person in persons])

    def _cosines(self, settings: Settings, person: int, seen: Floats) -> Floats:
        try:
            photos, _ = self._photos.look(settings.replace(no_face="continue"), person, self._encoders.yunet)
            return seen @ self._photos.direction(photos) if photos else np.zeros(len(seen), np.float32)
        except DPAdapterError:  # an identity that was saved without the encoder
            return np.zeros(len(seen), np.float32)


def looking(settings: Settings) -> list[int]:
    """Persons of whose regions one is automatic."""
    added = {region.identity for region in settings.regions if region.op == "add"}
    automatic = {region.identity for region in settings.regions if region.kind == "auto"}
    return [person for person in range(settings.identities) if person not in added or person in automatic]


def inside(face: Face, picture: Picture, region: Tensor) -> bool:
    """Whether a face's centre lies in a region [h, w] that covers the whole picture [H, W, 3]."""
    x, y = face.centre / np.array([picture.shape[1], picture.shape[0]])
    row, column = (min(max(int(at * side), 0), side - 1) for at, side in zip((y, x), region.shape, strict=True))
    return bool(region[row, column] > 0)
