"""Which face of an init picture is whose: by likeness to the photos where that tells, else from left to right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dp_adapter import naming
from dp_adapter.errors import DPAdapterError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.preview_faces import PreviewFinder
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.regions.face_matching import FacePosition, recognise
from dp_adapter.session.scene import Picture
from dp_adapter.settings import Region, Settings

Drawn = Callable[[int], "Tensor | None"]


@dataclass(frozen=True, eq=False)
class OwnedFaces:
    """The faces of one init picture.

    Attributes:
        faces: all of them, from left to right.
        face_of: by person, the number of their face.
        alike: persons whose face was told by likeness.
    """

    faces: tuple[Face, ...]
    face_of: Mapping[int, int]
    alike: frozenset[int]

    def describe(self, person: int) -> str:
        """Where a person's region comes from, in words."""
        why = ", the most like the photos" if person in self.alike else ""
        return f"{naming.face(self.face_of[person])} of the init picture, counted from the left{why}"

    def positions(self, picture: Picture) -> dict[int, FacePosition]:
        return {person: FacePosition.of(self.faces[face], picture.shape) for person, face in self.face_of.items()}


class InitFaces:
    """Looks at the init pictures of one generation, at each once.

    Args:
        looking: persons who look for a face, see `persons_looking`.
        finder: finds faces in place of the usual detector, as in a forming picture.
    """

    def __init__(
        self,
        settings: Settings,
        looking: Sequence[int],
        photos: ReferencePhotos,
        encoders: EncoderPool,
        finder: PreviewFinder | None,
    ) -> None:
        self._settings = settings
        self._looking = looking
        self._photos = photos
        self._encoders = encoders
        self._finder = finder
        self._found: dict[int, OwnedFaces] = {}  # by the pictures' id: the scene keeps them meanwhile

    def find(self, picture: Picture, drawn: Drawn) -> OwnedFaces:
        """Whose the faces of a picture are.

        Args:
            drawn: the region [h, w] of a person who looks for no face, or None: a face in there is that person's.
        """
        if id(picture) not in self._found:
            self._found[id(picture)] = self._find(picture, drawn)
        return self._found[id(picture)]

    def _find(self, picture: Picture, drawn: Drawn) -> OwnedFaces:
        faces = self._photos.faces(picture, self._finder or self._encoders.yunet)
        if not self._settings.references:  # nobody to be like: the regions alone are looked at
            return OwnedFaces(faces, {number: number for number in range(len(faces))}, frozenset())
        others = [person for person in range(self._settings.identities) if person not in self._looking]
        taken = [mask for person in others if (mask := drawn(person)) is not None]
        free = [n for n, face in enumerate(faces) if not any(lies_in(face, picture, mask) for mask in taken)]
        found, alike = recognise(
            [FacePosition.of(faces[n], picture.shape) for n in free],
            self._looking,
            self._likeness(picture, [faces[n] for n in free]),
        )
        return OwnedFaces(faces, {person: free[index] for person, index in found.items()}, alike)

    def _likeness(self, picture: Picture, faces: Sequence[Face]) -> Floats | None:
        """[persons, faces] cosines by the shipped encoder; zeros for persons that it does not know."""
        if not faces or len(self._looking) == len(faces) == 1:
            return None
        vectors = np.stack([self._photos.sface(picture, face) for face in faces])  # [F, 128]
        return np.stack([self._cosines(person, vectors) for person in self._looking])

    def _cosines(self, person: int, vectors: Floats) -> Floats:
        try:
            settings = self._settings.replace(no_face="continue")
            photos, _ = self._photos.look(settings, person, self._encoders.yunet)
            return vectors @ self._photos.direction(photos) if photos else np.zeros(len(vectors), np.float32)
        except DPAdapterError:  # an identity that was saved without the encoder
            return np.zeros(len(vectors), np.float32)


def persons_with_region(regions: Sequence[Region]) -> frozenset[int]:
    """Persons who were given a region to act in."""
    return frozenset(region.identity for region in regions if region.op == "add")


def persons_looking(regions: Sequence[Region], persons: int) -> list[int]:
    """Of so many persons, those of whose regions one is automatic: they look for their face."""
    added = persons_with_region(regions)
    automatic = {region.identity for region in regions if region.kind == "auto"}
    return [person for person in range(persons) if person not in added or person in automatic]


def lies_in(face: Face, picture: Picture, region: Tensor) -> bool:
    """Whether a face's centre lies in a region [h, w] that covers the whole picture [H, W, 3]."""
    x, y = face.centre / np.array([picture.shape[1], picture.shape[0]])
    row, column = (min(max(int(at * side), 0), side - 1) for at, side in zip((y, x), region.shape, strict=True))
    return bool(region[row, column] > 0)
