"""Several photographs of one person as one identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dp_adapter.errors import FaceError
from dp_adapter.identity.faces.face import Floats

Combination = Literal["average", "normalised_average", "weighted", "best", "concatenate"]


def combine(
    embeddings: Floats,
    weights: Sequence[float] | None = None,
    how: Combination = "average",
    qualities: Sequence[float] | None = None,
) -> Floats:
    """Embeddings [n, D] of one person as [k, D]; k = n for ``concatenate``, else 1.

    Args:
        weights: [n], >= 0, of the user; all 1 when None. A photo of weight 0 is left out in every way.
        how: ``average`` plain mean · ``normalised_average`` mean of the directions, given the mean of the lengths,
            so that no photo counts more for its longer vector · ``weighted`` mean by weight ·
            ``best`` the photo of highest weight x quality · ``concatenate`` each by itself, for checkpoints whose
            tokens are concatenated.
        qualities: [n] `Quality.score`, for ``best``; all 1 when None.

    Raises:
        FaceError: no photo, all weights 0, or as many weights or qualities as photos are not given.
    """
    count = len(embeddings)
    shares = _numbers(weights, count, "weight")
    scores = _numbers(qualities, count, "quality")
    used = shares > 0
    if not used.any():
        raise FaceError("No photo of the person is left to use", "Give at least one photo a weight above 0.")
    vectors, shares, scores = embeddings[used], shares[used], scores[used]
    if how == "concatenate":
        return vectors
    if how == "average":
        return vectors.mean(0, keepdims=True)
    if how == "weighted":
        return (shares[:, None] * vectors).sum(0, keepdims=True) / shares.sum()
    if how == "best":
        return vectors[[int(np.argmax(shares * scores))]]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    direction = (vectors / lengths).mean(0, keepdims=True)
    return direction / np.linalg.norm(direction) * lengths.mean()


def agreement(embeddings: Floats) -> Floats:
    """Mean cosine [n] of each embedding [n, D] to the others; 1 for a single one. A low one is another person."""
    count = len(embeddings)
    if count < 2:
        return np.ones(count, np.float32)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return ((unit @ unit.T).sum(1) - 1) / (count - 1)


def _numbers(values: Sequence[float] | None, count: int, what: str) -> Floats:
    numbers = np.ones(count, np.float32) if values is None else np.asarray(values, np.float32)
    if numbers.shape != (count,) or not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise FaceError(
            f"{count} photos need {count} {what} values of at least 0, not {list(numbers)}", "Give one a photo."
        )
    return numbers
