"""A saved identity in the making, into which every reader writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType

from dp_adapter.errors import CatalogError, DPAdapterError, MissingDependencyError, WeightsError
from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.face_quality import quality
from dp_adapter.identity.saved.saved_identity import FaceView, SavedPhoto
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.weights.library import Library

ABSENT = (CatalogError, MissingDependencyError, WeightsError)


@dataclass
class DraftPhoto:
    """A photo that is being saved, by the name of the detector that framed the face.

    Attributes:
        framed: the photo with this face; all photos of a draft have the same detectors.
        vectors: what goes into the file, by the names that `FaceView` lists.
    """

    digest: str
    weight: float
    framed: dict[str, SeenPhoto]
    vectors: dict[str, dict[str, Floats]]

    def saved(self) -> SavedPhoto:
        views = {name: _view(photo, self.vectors[name]) for name, photo in self.framed.items()}
        return SavedPhoto(self.digest, self.weight, MappingProxyType(views))


@dataclass
class Draft:
    """A saved identity in the making.

    Attributes:
        library: in whose files there are towers that look at photos themselves.
        versions: of the encoders, by network.
        zeros: by tower, CLIP's hidden state [L, W] of an all-zero picture.
        notes: what was left out, in words.
    """

    photos: list[DraftPhoto]
    library: Library
    versions: dict[str, str]
    zeros: dict[str, Floats]
    notes: list[str] = field(default_factory=list[str])

    def faces(self) -> Iterator[tuple[str, SeenPhoto, dict[str, Floats]]]:
        """Every detector of every photo, the photo with the face that it framed, and the vectors that belong to it."""
        for photo in self.photos:
            for detector, framed in photo.framed.items():
                yield detector, framed, photo.vectors[detector]

    def faces_of(self, detector: str) -> list[tuple[SeenPhoto, dict[str, Floats]]]:
        """As `faces`, of one detector; none where it is not here."""
        return [(photo, vectors) for name, photo, vectors in self.faces() if name == detector]

    def leave_out(self, encoder: str, error: DPAdapterError) -> None:
        """Notes that an encoder is not here, and why."""
        self.notes.append(f"{encoder} is left out: {error.problem}.")


def _view(photo: SeenPhoto, vectors: dict[str, Floats]) -> FaceView:
    described = photo.describe(None)
    assert described.box is not None and described.chosen is not None
    return FaceView(
        faces=described.faces,
        chosen=described.chosen,
        box=described.box,
        quality=quality(photo.picture, photo.face),
        vectors=MappingProxyType(vectors),
    )
