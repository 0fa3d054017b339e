"""How like the photos a finished picture is: its faces by the shipped detector, compared by the shipped encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.session.regions.face_matching import assign
from dp_adapter.session.scene import Mask
from dp_adapter.session.session import Session
from dp_adapter.settings import Settings

JUDGE = "SFace"
Vector = NDArray[np.float32]
_NOBODY = -1.0  # the likeness of a person who is not in the picture, where pictures are compared


@dataclass(frozen=True)
class LikenessVerdict:
    """What was found in a picture.

    Attributes:
        faces: how many.
        likeness: by person, the cosine of the face that is most likely theirs; None where no face is left for them.
    """

    faces: int
    likeness: Mapping[int, float | None]

    @property
    def least(self) -> float | None:
        """Likeness of the person who is met worst, -1 for one who is missing; None when there is nobody to judge."""
        return min((_NOBODY if alike is None else alike for alike in self.likeness.values()), default=None)


class Judge:
    """Knows the persons of a request.

    Args:
        conditioning: names of the encoders whose vectors made the picture.

    Raises:
        DPAdapterError: a photo cannot be read any more, or a saved identity lacks the judge's vectors.
    """

    def __init__(self, session: Session, settings: Settings, conditioning: Sequence[str] = ()) -> None:
        self._session = session
        vectors = {number: reference_vector(session, settings, number) for number in range(settings.identities)}
        self._persons = {number: vector for number, vector in vectors.items() if vector is not None}
        self.unknown = tuple(number for number, vector in vectors.items() if vector is None)
        """Persons in whose photos the detector finds no face."""
        self.partial = session.encoders.sface.name in conditioning
        """Whether the judge's vectors also made the picture, so that it is no independent witness."""

    @property
    def name(self) -> str:
        """The judge, and whether it is an independent one."""
        return f"{JUDGE}, which also guided the picture" if self.partial else JUDGE

    def see(self, picture: Picture) -> LikenessVerdict:
        """Judges a finished picture; of several persons, each gets the face that makes all of them most alike."""
        faces = find(self._session.encoders, picture)
        persons = list(self._persons)
        cosines = self._cosines(picture, faces, persons)  # [P, F]
        chosen = assign(cosines)
        return LikenessVerdict(
            len(faces),
            {
                person: None if place is None else round(float(cosines[row, place]), 4)
                for row, (person, place) in enumerate(zip(persons, chosen, strict=True))
            },
        )

    def whose(self, picture: Picture, faces: Sequence[Face], regions: Mapping[int, Mask | None]) -> dict[int, Face]:
        """By person, the face that lies most in their region and is most alike.

        Args:
            regions: of the persons that acted, [h, w] in 0..1 over the whole picture; None is everywhere.
        """
        persons = list(regions)
        scores = np.stack([[_inside(regions[person], face, picture.shape) for face in faces] for person in persons])
        known = [person for person in persons if person in self._persons]
        if len(faces) > 1 and known:
            scores[[persons.index(person) for person in known]] += self._cosines(picture, faces, known)
        chosen = assign(scores.astype(np.float32))
        return {person: faces[place] for person, place in zip(persons, chosen, strict=True) if place is not None}

    def _cosines(self, picture: Picture, faces: Sequence[Face], persons: Sequence[int]) -> Vector:
        """[P, F]"""
        if not faces or not persons:
            return np.zeros((len(persons), len(faces)), np.float32)
        seen = np.stack([self._session.photos.sface(picture, face) for face in faces])  # [F, 128]
        return np.stack([self._persons[person] for person in persons]) @ seen.transpose()


def find(encoders: EncoderPool, picture: Picture) -> list[Face]:
    """All faces of a finished picture, largest first; they are not kept, as those of photos are."""
    return sorted(encoders.yunet.detect(picture), key=lambda face: -face.size)


def reference_vector(session: Session, settings: Settings, identity: int = 0) -> Vector | None:
    """Mean direction [128] of one person's photos by the judge; None when its own detector finds no face in any."""
    seen, _ = session.photos.look(settings.replace(no_face="continue"), identity, session.encoders.yunet)
    if not seen:
        return None
    return session.photos.direction(seen)


def _inside(region: Mask | None, face: Face, shape: tuple[int, ...]) -> float:
    """Share of a face's box that lies in a region; the same for all faces where the region is everywhere."""
    if region is None:
        return 1.0
    scale = np.array([region.shape[1] / shape[1], region.shape[0] / shape[0]] * 2)
    x0, y0, x1, y1 = (face.box * scale).round().astype(int).tolist()
    part = region[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    return float(part.mean()) if part.size else 0.0
