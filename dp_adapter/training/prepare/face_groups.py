"""Which pictures are nearly the same, and which faces are one person's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import IdentityError, MissingDependencyError
from dp_adapter.identity.faces.face import Floats

Ints = NDArray[np.intp]
_CELLS = 1 << 25  # of the similarity matrix at a time: 128 MiB
MOST_IN_A_CHAIN = 20_000
"""Most faces that hang together by their cosines; linkage keeps 8 bytes for each pair of them: 1.6 GB."""


@dataclass(frozen=True)
class Closeness:
    """How alike the faces within groups and of different groups are, by cosines of SFace vectors.

    Attributes:
        within: mean cosine of each group of two or more faces.
        between: greatest mean cosine of any two groups; 0 with one group.
        doubtful: pairs of groups whose mean cosine is less than 0.1 below the threshold.
    """

    within: tuple[float, ...]
    between: float
    doubtful: int


def find_near_duplicates(vectors: Floats, hashes: NDArray[np.uint64], order: Ints, bits: int, cosine: float) -> Ints:
    """For each of N pictures the index of the one that it repeats, its own where it repeats none: [N].

    Args:
        vectors: [N, D] of the faces, of length 1; hashes: [N] perceptual hashes of 64 bits.
        order: [N] indices, best picture first; of near duplicates the first in it is kept.
        bits: most bits in which the hashes of two near duplicates differ; cosine: least cosine of their faces.
    """
    kept_of = np.arange(len(vectors))
    rank = np.argsort(order)
    for members in _split_by_number(_connected_components(vectors, cosine)):
        kept: list[int] = []
        for index in sorted(members.tolist(), key=lambda i: rank[i]):
            same = np.array(kept, np.intp)
            alike = (vectors[same] @ vectors[index] >= cosine) & (
                _count_differing_bits(hashes[same], hashes[index : index + 1]) <= bits
            )
            if alike.any():
                kept_of[index] = kept[int(np.flatnonzero(alike)[0])]
            else:
                kept.append(index)
    return kept_of


def group_people(vectors: Floats, threshold: float) -> Ints:
    """The number of the person for each of N faces, [N], counted from 0 in the order of their first faces.

    Agglomerative clustering with average linkage: two groups become one while the mean cosine between their faces is
    at least the threshold. It runs in each connected component of pairs over the threshold, beyond which it can join
    nothing.

    Args:
        vectors: [N, D] of length 1.

    Raises:
        IdentityError: a chain is too long for memory.
        MissingDependencyError: scipy is not installed.
    """
    numbers = np.zeros(len(vectors), np.intp)
    used = 0
    for members in _split_by_number(_connected_components(vectors, threshold)):
        if len(members) > MOST_IN_A_CHAIN:
            raise IdentityError(
                f"{len(members)} faces hang together by cosines over {threshold:g}, too many to tell people apart",
                f"Give people by folders or a table, or raise 'same' (more than {MOST_IN_A_CHAIN} are not tried).",
            )
        inside = _cluster(vectors[members], threshold)
        numbers[members] = used + inside
        used += int(inside.max()) + 1
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def measure_closeness(vectors: Floats, numbers: Ints, threshold: float) -> Closeness:
    """Measures a grouping of N faces.

    Args:
        vectors: [N, D] of length 1; numbers: [N] of the faces' persons, from 0.
        threshold: pairs of groups whose mean cosine is just below it are doubtful.
    """
    count = int(numbers.max()) + 1 if len(numbers) else 0
    sizes = np.bincount(numbers, minlength=count)
    sums = np.zeros((count, vectors.shape[1]), np.float64)
    np.add.at(sums, numbers, vectors)
    means = (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32)
    many = sizes > 1
    lengths = (sums[many] ** 2).sum(-1)
    within = (lengths - sizes[many]) / (sizes[many] * (sizes[many] - 1))  # without each face's cosine to itself
    between, doubtful = 0.0, 0
    rows = _rows_at_a_time(count)
    for start in range(0, count, rows):
        cosines = np.triu(means[start : start + rows] @ np.transpose(means), start + 1)
        between = max(between, float(cosines.max(initial=0.0)))
        doubtful += int(((cosines >= threshold - 0.1) & (cosines < threshold)).sum())
    return Closeness(tuple(float(value) for value in within), between, doubtful)


def _cluster(vectors: Floats, threshold: float) -> Ints:
    if len(vectors) == 1:
        return np.zeros(1, np.intp)
    hierarchy = _import_scipy("cluster.hierarchy")
    distances = _import_scipy("spatial.distance").pdist(vectors.astype(np.float64), "cosine")
    tree = hierarchy.linkage(distances, "average")
    return np.asarray(hierarchy.fcluster(tree, 1 - threshold, "distance"), np.intp) - 1


def _connected_components(vectors: Floats, threshold: float) -> Ints:
    """Numbers [N] of the connected components of pairs with at least this cosine."""
    rows: list[Ints] = []
    columns: list[Ints] = []
    step = _rows_at_a_time(len(vectors))
    for start in range(0, len(vectors), step):
        near = np.triu(vectors[start : start + step] @ np.transpose(vectors) >= threshold - 1e-6, start + 1)
        row, column = np.nonzero(near)
        rows.append(row + start)
        columns.append(column)
    row, column = np.concatenate(rows), np.concatenate(columns)
    size = (len(vectors), len(vectors))
    graph = _import_scipy("sparse").coo_matrix((np.ones(len(row), np.bool_), (row, column)), size)
    return np.asarray(_import_scipy("sparse.csgraph").connected_components(graph, directed=False)[1], np.intp)


def _rows_at_a_time(columns: int) -> int:
    return max(1, _CELLS // max(columns, 1))


def _split_by_number(numbers: Ints) -> list[Ints]:
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _count_differing_bits(hashes: NDArray[np.uint64], other: NDArray[np.uint64]) -> Ints:
    """Bits in which each of [N] hashes differs from another, [1]."""
    if not len(hashes):
        return np.zeros(0, np.intp)
    return np.unpackbits((hashes ^ other).view(np.uint8).reshape(len(hashes), 8), axis=1).sum(1).astype(np.intp)


def _import_scipy(module: str) -> Any:
    """A module of scipy, which brings no types."""
    try:
        return import_module(f"scipy.{module}")
    except ImportError:
        raise MissingDependencyError("scipy", "Telling people apart", "train") from None


def rank_best_first(scores: Sequence[float], sizes: Sequence[float], keys: Sequence[str]) -> Ints:
    """Indices, best first: by suitability as a reference, then size, then key, so that the order is always the same."""
    return np.array(sorted(range(len(keys)), key=lambda i: (-scores[i], -sizes[i], keys[i])), np.intp)
