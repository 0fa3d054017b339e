"""Whether a photo that was added to a person's photos shows somebody else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dp_adapter import naming
from dp_adapter.errors import DPAdapterError
from dp_adapter.identity.faces.detector import Detector
from dp_adapter.identity.faces.face import Floats
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.regions.face_matching import SAME
from dp_adapter.settings import Settings
from dp_adapter.settings.sections import MAX_IDENTITIES


@dataclass(frozen=True)
class Stranger:
    """A photo that is not like the others of its person.

    Attributes:
        photo: its number; person: whose it is said to be; both from 0.
        likeness: cosine to the mean of the others, by the shipped encoder.
        instead: the person whose photos it is like, else the next new one; None where there is no room for one.
    """

    photo: int
    person: int
    likeness: float
    instead: int | None

    @property
    def words(self) -> str:
        return (
            f"{naming.capitalise(naming.photo(self.photo))} looks like somebody else than {naming.person(self.person)}:"
            f" its likeness to their other photos is {self.likeness:.2f}, and two photos of one person have {SAME:.2f} "
            "or more. Is it somebody else?"
        )


def strangers(
    photos: ReferencePhotos,
    detector: Detector,
    references: Sequence[Mapping[str, Any]],
    face: Mapping[str, Any],
    added: Collection[int],
) -> list[Stranger]:
    """Those of the added photos that show somebody else than the person's other photos, in their order.

    Photos without a vector, as without a face, are passed over. An added one is compared with those that were there,
    and with added ones before it that are no strangers.

    Args:
        references: as in a request; face: the common face choice.
        added: numbers among them.
    """
    vectors = [_vector(photos, detector, one, face) for one in references]
    theirs: dict[int, list[Floats]] = {}
    found: list[Stranger] = []
    order = sorted(range(len(references)), key=lambda number: number in added)
    taken = {_person(one) for one in references}
    for place, number in enumerate(order):
        vector, person = vectors[number], _person(references[number])
        if vector is None:
            continue
        likeness = _likeness(vector, theirs.get(person, []))
        if number in added and likeness is not None and likeness < SAME:
            later = [n for n in order[place + 1 :] if _person(references[n]) != person]
            instead = _like(vector, _join(theirs, [(_person(references[n]), vectors[n]) for n in later]))
            instead = next((n for n in range(MAX_IDENTITIES) if n not in taken), None) if instead is None else instead
            found.append(Stranger(number, person, likeness, instead))
            person = -1 if instead is None else instead
            taken.add(person)
        theirs.setdefault(person, []).append(vector)
    return found


def _person(reference: Mapping[str, Any]) -> int:
    person = reference.get("identity", 0)
    return person if isinstance(person, int) else 0  # what was pasted may be anything


def _vector(
    photos: ReferencePhotos, detector: Detector, one: Mapping[str, Any], face: Mapping[str, Any]
) -> Floats | None:
    """Of the face that is taken in a photo, or of a saved identity; None where there is none."""
    try:
        asked = Settings.from_dict({"references": [{"image": one.get("image"), "face": one.get("face")}], "face": face})
        seen, _ = photos.look(asked, 0, detector)
        return photos.direction(seen) if seen else None
    except DPAdapterError:
        return None


def _join(theirs: Mapping[int, list[Floats]], more: Sequence[tuple[int, Floats | None]]) -> dict[int, list[Floats]]:
    joined = {person: list(vectors) for person, vectors in theirs.items()}
    for person, vector in more:
        if vector is not None:
            joined.setdefault(person, []).append(vector)
    return joined


def _likeness(vector: Floats, others: Sequence[Floats]) -> float | None:
    if not others:
        return None
    mean = np.mean(others, axis=0)
    return float(vector @ mean / max(float(np.linalg.norm(mean)), 1e-9))


def _like(vector: Floats, theirs: Mapping[int, Sequence[Floats]]) -> int | None:
    """The person whose photos a face is most like; None for nobody."""
    alike = {person: _likeness(vector, others) or 0.0 for person, others in theirs.items()}
    best = max(alike, key=lambda person: alike[person], default=None)
    return best if best is not None and alike[best] >= SAME else None
