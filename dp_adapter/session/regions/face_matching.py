"""Which found face is whose: by the place it was last seen at, by likeness, else by order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dp_adapter.identity.faces.face import Face, Floats

_SIZE = 0.5  # share of a doubled size against a move by one face
_LIKENESS = 8.0  # moves by one face that a cosine of 1 outweighs
SAME = 0.363  # cosine of SFace from which on two faces are one person's (opencv_zoo's threshold, from LFW)
_SURE = 0.1  # by which likeness must speak against the order from left to right


@dataclass(frozen=True)
class FacePosition:
    """Where a face is, in fractions of the picture's longer side, so that it means the same at every size.

    Attributes:
        x, y: centre; size: square root of the box's area.
    """

    x: float
    y: float
    size: float

    @classmethod
    def of(cls, face: Face, shape: tuple[int, ...]) -> FacePosition:
        """Of a face in a picture [H, W, 3]."""
        side = max(shape[:2])
        x, y = (face.centre / side).tolist()
        return cls(float(x), float(y), float(face.size / side))

    def distance_to(self, other: FacePosition) -> float:
        """0 for the same place; 1 for a move by one face or a fourfold size."""
        mean = max((self.size + other.size) / 2, 1e-6)
        moved = float(np.hypot(self.x - other.x, self.y - other.y)) / mean
        return moved + _SIZE * abs(float(np.log2(max(self.size, 1e-6) / max(other.size, 1e-6))))


def match(
    positions: Sequence[FacePosition],
    persons: Sequence[int],
    last: Mapping[int, FacePosition],
    likeness: Floats | None = None,
) -> dict[int, int]:
    """Index of the face of each person, for those who have one.

    A person seen before gets the nearest face; likeness, where it is known, outweighs moves of several faces. Those
    never seen share what is left: the largest faces, in the persons' order from left to right.

    Args:
        positions: of the found faces.
        persons: all persons that are tracked, in order.
        last: where a person's face was seen last.
        likeness: [persons, faces] cosines, or None.
    """
    if not positions:
        return {}
    seen = [person for person in persons if person in last]
    costs = np.array([[position.distance_to(last[person]) for position in positions] for person in seen]).reshape(
        -1, len(positions)
    )
    if likeness is not None and seen:
        costs = costs - _LIKENESS * likeness[[persons.index(person) for person in seen]]
    found = {seen[row]: face for row, face in assign_cheapest(costs).items()}
    new = [person for person in persons if person not in last]
    free = [face for face in range(len(positions)) if face not in found.values()]
    largest = sorted(free, key=lambda face: -positions[face].size)[: len(new)]
    if likeness is not None and len(new) > 1 and largest:
        rows = [persons.index(person) for person in new]
        return found | {new[row]: free[face] for row, face in assign_cheapest(-likeness[np.ix_(rows, free)]).items()}
    return found | dict(zip(new, sorted(largest, key=lambda face: positions[face].x), strict=False))


def recognise(
    positions: Sequence[FacePosition], persons: Sequence[int], likeness: Floats | None
) -> tuple[dict[int, int], frozenset[int]]:
    """Index of each person's face in a picture that is there already, for those who have one, and who was recognised.

    Where faces are like the photos, each person gets their own; where none is, or all are alike, the largest faces
    count, in the persons' order from left to right. A person without a face that is like them gets what is left.

    Args:
        positions: of the found faces.
        persons: who look for a face, in order.
        likeness: [persons, faces] cosines by SFace, or None.
    """
    in_order = match(positions, persons, {})
    if likeness is None or not positions or not persons:
        return in_order, frozenset()
    alike = np.where(likeness >= SAME, likeness, 0).astype(np.float32)
    rows = {person: row for row, person in enumerate(persons)}
    ordered = sum(float(alike[rows[person], face]) for person, face in in_order.items())
    best = {persons[row]: face for row, face in assign_cheapest(-alike).items() if alike[row, face] > 0}
    if sum(float(alike[rows[person], face]) for person, face in best.items()) < ordered + _SURE:
        return in_order, frozenset()
    others = [person for person in persons if person not in best]
    free = [face for face in range(len(positions)) if face not in best.values()]
    left = match([positions[face] for face in free], others, {})
    return best | {person: free[face] for person, face in left.items()}, frozenset(best)


def assign_cheapest(costs: Floats) -> dict[int, int]:
    """The assignment of rows to columns with the least sum of costs [rows, columns]; min(rows, columns) pairs."""
    return {row: column for row, column in enumerate(assign(-costs)) if column is not None}


def assign(scores: Floats) -> tuple[int | None, ...]:
    """A face of its own for each person, for as many as there are faces, with the largest sum of scores.

    Args:
        scores: [P, F].

    Returns:
        P columns.
    """
    persons, faces = scores.shape
    nobody: tuple[int | None, ...] = (None,) * persons
    # The best way to serve each set of persons with the faces so far, as (how many, sum, columns).
    best: dict[int, tuple[int, float, tuple[int | None, ...]]] = {0: (0, 0.0, nobody)}
    for face in range(faces):
        served = dict(best)
        for done, (many, total, columns) in best.items():
            for person in range(persons):
                more = done | 1 << person
                if more == done:
                    continue
                columns_now = (*columns[:person], face, *columns[person + 1 :])
                candidate = (many + 1, total + float(scores[person, face]), columns_now)
                if more not in served or candidate[:2] > served[more][:2]:
                    served[more] = candidate
        best = served
    return max(best.values(), key=lambda way: way[:2])[2]
