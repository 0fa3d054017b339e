"""Photos of saved identities, which stand for themselves without being there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dp_adapter.errors import SettingsError
from dp_adapter.hints import command
from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.face_quality import Quality
from dp_adapter.identity.saved.saved_identity import EncoderView, SavedIdentity
from dp_adapter.session.explanation import Photo

IDENTITY = "identity:"
_PACK = "insightface/"
_LATER = {
    "person": "the cut-out person",
    "parsed": "the face without its background",
    "parts": "the parts of the face",
}
_AGAIN = "then save the identity again from its photos"


@dataclass(frozen=True, eq=False)
class Remembered:
    """One photo of a saved identity, as one detector framed it.

    Attributes:
        field: of the request that names the identity.
        identity: its name.
        weight: the photo's share in the identity times the reference's.
        zeros: by tower, what it sees in an all-zero picture [L, W].
        versions: of the encoders by name.
        number: of the identity in the request's list; place: of the photo in the identity.
    """

    field: str
    identity: str
    digest: str
    weight: float
    view: EncoderView
    zeros: Mapping[str, Floats]
    versions: Mapping[str, str]
    number: int = 0
    place: int = 0

    @property
    def quality(self) -> Quality:
        return self.view.quality

    def described(self, agreement: float | None) -> Photo:
        view = self.view
        score, warnings = round(view.quality.score, 3), view.quality.warnings()
        facts = (self.digest[:16], view.faces, view.chosen, view.box, score, warnings, agreement)
        return Photo(*facts, self.identity, self.number, self.place)

    def face(self, encoder: str) -> Floats:
        """The vector [D] of a face encoder. Raises SettingsError where the identity was saved without it."""
        vector = self.view.face(encoder)
        if vector is None:
            network = encoder.removesuffix("/normed").removesuffix("/raw")
            raise self._lacking(network, f"{_face_hint(network)}, {_AGAIN}.")
        return vector

    def clip(self, crop: str, part: str, width: int) -> tuple[str, Floats]:
        """Name of a tower and its ``embeds`` [P] or ``hidden`` [L, W] of a crop, [P, L, W] of the parts of the face.

        Raises:
            SettingsError: the identity was saved without such a tower, or before this crop was kept.
        """
        found = self.view.clip(crop, part, width)
        if found is None and crop in _LATER and self.view.clip("face", part, width) is not None:
            problem = f"the saved identity '{self.identity}' has no vectors of {_LATER[crop]}, which this model takes"
            raise SettingsError(self.field, problem, "Save the identity again from its photos.")
        if found is None or found[0] not in self.zeros:
            which = f"{'projection' if part == 'embeds' else 'hidden'} width {width}"
            hint = f"Put that encoder into models/clip_vision ({command('models get clip-vit-h')})"
            raise self._lacking(f"a CLIP vision encoder with {which}", f"{hint}, {_AGAIN}.")
        return found

    def patches(self, width: int) -> tuple[str, Floats]:
        """Name of a TransFace and its patch features [L, width].

        Raises:
            SettingsError: the identity was saved without it.
        """
        found = self.view.patches(width)
        if found is None:
            hint = f"Get its file ({command('models get transface-s')} says where)"
            raise self._lacking("TransFace", f"{hint}, {_AGAIN}.")
        return found

    def eva(self, width: int) -> tuple[str, Floats, Floats]:
        """Name of an EVA02-CLIP tower, and its image embedding [c] and hidden states [5, L, w] of the face.

        Raises:
            SettingsError: the identity was saved without such a tower.
        """
        found = self.view.eva(width)
        if found is None:
            hint = f"Put that encoder into models/clip_vision ({command('models get eva02-clip-l-336')})"
            raise self._lacking(f"EVA02-CLIP with hidden width {width}", f"{hint}, {_AGAIN}.")
        return found

    def id_embeds(self, kind: str, title: str, file: str) -> Floats:
        """What a vision tower inside a checkpoint saw in the photo, [T, D].

        Args:
            kind: of the tower; title, file: the checkpoint's, for people.

        Raises:
            SettingsError: the identity was saved without this tower.
        """
        found = self.view.vectors.get(f"{kind}/ids")
        if found is None:
            family, _, _ = kind.partition("/")
            others = any(name.startswith(f"{family}/") for name in self.versions)
            lacks = "what other files of its kind saw, not this one" if others else "neither them nor what it saw"
            problem = f"{title} looks at photos itself, and the saved identity '{self.identity}' keeps {lacks}"
            hint = f"Give the photos, or save the identity again from them while {file} is among the models."
            raise SettingsError(self.field, problem, hint)
        return found

    def _lacking(self, encoder: str, hint: str) -> SettingsError:
        return lacking(self.field, self.identity, self.versions, encoder, hint)


def remembered(saved: SavedIdentity, field: str, weight: float, detector: str, number: int = 0) -> list[Remembered]:
    """The photos of an identity as a detector framed them.

    Args:
        weight: factor on the photos' own; number: of the identity in the request's list.

    Raises:
        SettingsError: the identity was saved where this detector was not.
    """
    found: list[Remembered] = []
    for place, photo in enumerate(saved.photos):
        view = photo.view(detector)
        if view is None:
            encoder = detector.replace(_PACK, "arcface/")
            raise lacking(field, saved.name, saved.encoders, encoder, f"{_face_hint(encoder)}, {_AGAIN}.")
        share = photo.weight * weight
        known = (saved.name, photo.digest, share, view, saved.zeros, saved.encoders)
        found.append(Remembered(field, *known, number, place))
    return found


def direction(saved: SavedIdentity, field: str, detector: str, encoder: str) -> Floats:
    """The person's mean direction [D] by a face encoder, photos by weight. Raises as `remembered`."""
    photos = remembered(saved, field, 1.0, detector)
    mean = np.sum([photo.weight * photo.face(encoder) for photo in photos], axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def lacking(field: str, identity: str, has: Mapping[str, str], encoder: str, hint: str) -> SettingsError:
    """That an identity has no vectors of an encoder."""
    listed = ", ".join(sorted(has))
    problem = f"the saved identity '{identity}' has no vectors of {encoder}, which this model takes; it has {listed}"
    return SettingsError(field, problem, hint)


def _face_hint(encoder: str) -> str:
    _, _, pack = encoder.partition("/")
    return f"Install insightface with its pack '{pack}'" if pack else f"Install {encoder}"
