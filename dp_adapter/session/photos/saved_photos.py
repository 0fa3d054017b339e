"""Photos of saved identities, of which there are vectors and no picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dp_adapter.errors import SettingsError
from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.face_quality import Quality
from dp_adapter.identity.saved.saved_identity import FaceView, SavedIdentity, network_of
from dp_adapter.session.explanation import Photo

IDENTITY = "identity:"
_PACK = "insightface/"


@dataclass(frozen=True, eq=False)
class SavedReference:
    """One photo of a saved identity among the references of a request, as one detector framed it.

    Attributes:
        field: of the request that names the identity.
        digest: of the photo; weight: its share in the identity times the reference's.
        number: of the identity in the request's list; place: of the photo in the identity.
    """

    field: str
    saved: SavedIdentity
    digest: str
    weight: float
    view: FaceView
    number: int = 0
    place: int = 0

    @property
    def quality(self) -> Quality:
        return self.view.quality

    def describe(self, agreement: float | None) -> Photo:
        view = self.view
        return Photo(
            digest=self.digest[:16],
            faces=view.faces,
            chosen=view.chosen,
            box=view.box,
            quality=round(view.quality.score, 3),
            warnings=view.quality.warnings(),
            agreement=agreement,
            identity=self.saved.name,
            number=self.number,
            place=self.place,
        )

    def face(self, encoder: str) -> Floats:
        """The vector [D] of a face encoder. Raises SettingsError where the identity was saved without it."""
        vector = self.view.face(encoder)
        if vector is None:
            raise self.lacking(network_of(encoder), _face_hint(network_of(encoder)))
        return vector

    def lacking(self, encoder: str, hint: str) -> SettingsError:
        """That the identity has no vectors of an encoder, and how to get it."""
        return _lacking(self.field, self.saved, encoder, hint)


def open_saved(saved: SavedIdentity, field: str, weight: float, detector: str, number: int = 0) -> list[SavedReference]:
    """The photos of an identity as a detector framed them.

    Args:
        weight: factor on the photos' own; number: of the identity in the request's list.

    Raises:
        SettingsError: the identity was saved where this detector was not.
    """
    found: list[SavedReference] = []
    for place, photo in enumerate(saved.photos):
        view = photo.view(detector)
        if view is None:
            encoder = detector.replace(_PACK, "arcface/")
            raise _lacking(field, saved, encoder, _face_hint(encoder))
        share = photo.weight * weight
        found.append(SavedReference(field, saved, photo.digest, share, view, number=number, place=place))
    return found


def mean_direction(saved: SavedIdentity, field: str, detector: str, encoder: str) -> Floats:
    """The person's mean direction [D] by a face encoder, photos by weight. Raises as `open_saved`."""
    photos = open_saved(saved, field, 1.0, detector)
    mean = np.sum([photo.weight * photo.face(encoder) for photo in photos], axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def _lacking(field: str, saved: SavedIdentity, encoder: str, hint: str) -> SettingsError:
    listed = ", ".join(sorted(saved.encoders))
    problem = f"the saved identity '{saved.name}' has no vectors of {encoder}, which this model takes; it has {listed}"
    return SettingsError(field, problem, f"{hint}, then save the identity again from its photos.")


def _face_hint(encoder: str) -> str:
    _, _, pack = encoder.partition("/")
    return f"Install insightface with its pack '{pack}'" if pack else f"Install {encoder}"
