"""A saved identity: what several encoders saw in a person's photos, without the photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.face_quality import Quality


@dataclass(frozen=True, eq=False)
class FaceView:
    """The face of one photo as one detector framed it, and what encoders saw in it.

    Args:
        faces: how many faces the photo has; ``chosen`` counts from the left.
        box: x1, y1, x2, y2 in px of the photo.
        vectors: by name. ``sface`` [128]; ``arcface/PACK/raw`` [512]; of a CLIP tower and CROP ``face`` (aligned) or
            ``photo`` (whole), ``TOWER/CROP/embeds`` [P] and ``TOWER/CROP/hidden`` [L, W]; ``TOWER/person/hidden`` of
            the cut-out person, ``TOWER/parsed/hidden`` of the face without its background, ``TOWER/parts/hidden``
            [5, L, W] of the parts of the face, zeros for one that does not show; ``transface/SIZES/patches`` [L, c] of
            the head; of an EVA02-CLIP tower ``TOWER/face/pooled`` [P] and ``TOWER/face/hidden`` [5, L, W], of the grey
            face; ``photomaker/DIGEST/ids`` [T, D] of the tower inside a PhotoMaker file.
    """

    faces: int
    chosen: int
    box: tuple[float, float, float, float]
    quality: Quality
    vectors: Mapping[str, Floats]

    def face(self, encoder: str) -> Floats | None:
        """The vector of a face encoder by its name; ArcFace's normed one is the raw one, brought to length 1."""
        raw = self.vectors.get(encoder.replace("/normed", "/raw"))
        if raw is None or not encoder.endswith("/normed"):
            return raw
        return (raw / np.linalg.norm(raw)).astype(np.float32)

    def find(self, prefix: str, suffix: str, width: int) -> tuple[str, Floats] | None:
        """Name of a network with this prefix, and its vector with this suffix, of this width; the first by name."""
        for name, vector in sorted(self.vectors.items()):
            if name.startswith(prefix) and name.endswith(suffix) and vector.shape[-1] == width:
                return name.removesuffix(suffix), vector.astype(np.float32, copy=False)  # large ones lie there in half
        return None


@dataclass(frozen=True, eq=False)
class SavedPhoto:
    """One photo of a saved identity.

    Args:
        digest: SHA-256 of its decoded content, 64 hex digits.
        weight: its share, > 0.
        views: by the detector's name.
    """

    digest: str
    weight: float
    views: Mapping[str, FaceView]

    def view(self, detector: str) -> FaceView | None:
        """A detector's view, with what was seen of the whole photo: that needs no face, and lies in one view alone."""
        view = self.views.get(detector)
        if view is None:
            return None
        whole = {
            name: vector for one in self.views.values() for name, vector in one.vectors.items() if "/photo/" in name
        }
        return replace(view, vectors={**whole, **view.vectors})


@dataclass(frozen=True, eq=False)
class IdentityHeader:
    """What a list of identities shows.

    Args:
        name: the file's, without its ending.
        created: UTC, as ISO 8601.
        digest: SHA-256 over photos, vectors and thumbnail as hex; the same whatever the name.
        thumbnail: a PNG file's bytes.
        encoders: versions by name, of the encoders whose vectors every photo has.
        hashes: the photos' digests.
    """

    name: str
    created: str
    digest: str
    thumbnail: bytes
    encoders: Mapping[str, str]
    hashes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SavedIdentity(IdentityHeader):
    """A whole identity.

    Args:
        photos: all with the same views and vectors.
        zeros: by tower, CLIP's hidden state [L, W] of an all-zero picture.
        notes: what was left out while it was made, in words; not in the file.
    """

    photos: tuple[SavedPhoto, ...]
    zeros: Mapping[str, Floats]
    notes: tuple[str, ...] = field(default=())


def network_of(vector: str) -> str:
    """The network of a vector: ``sface``, ``arcface/PACK``, ``clip/SIZES``."""
    return "/".join(vector.split("/")[:2])
