"""What is measured on finished pictures: pure functions of arrays. Pictures are uint8 RGB [H, W, 3], masks [H, W]."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import MissingDependencyError
from dp_adapter.identity.pictures.picture_files import Picture

Floats = NDArray[np.float32]


def cosine(one: Floats, other: Floats) -> float:
    """Of two vectors [D] of any length."""
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(np.dot(one, other)) / max(lengths, 1e-12)


def harmonic(one: float, other: float) -> float:
    """Harmonic mean of two scores; 0 where one of them is not above 0."""
    return 2 * one * other / (one + other) if one > 0 and other > 0 else 0.0


def drift(picture: Picture, base: Picture, weights: Floats) -> float | None:
    """Mean squared difference of values in 0..1 where the weights are; None where less than a pixel weighs."""
    square = (((picture.astype(np.float32) - base) / 255) ** 2).mean(-1)
    return weighted_mean(square, weights)


def colour_distance(picture: Picture, base: Picture, weights: Floats) -> float | None:
    """Mean CIELAB distance (CIE 1976) where the weights are; 2.3 is just noticeable."""
    import cv2

    one, other = (np.asarray(cv2.cvtColor(p.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)) for p in (picture, base))
    return weighted_mean(np.linalg.norm(one - other, axis=-1).astype(np.float32), weights)


def structural_similarity(picture: Picture, base: Picture, weights: Floats) -> float | None:
    """SSIM (Wang et al., TIP 2004: Gaussian window, sigma 1.5) of the luminances, averaged where the weights are.

    Raises:
        MissingDependencyError: scikit-image is not installed.
    """
    try:
        from skimage import metrics
    except ImportError:
        raise MissingDependencyError("scikit-image", "Comparing pictures by SSIM", "eval") from None
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    one, other = picture.astype(np.float32) @ luma, base.astype(np.float32) @ luma
    measure = cast(Any, metrics.structural_similarity)  # pyright: ignore[reportUnknownMemberType]
    _, similar = measure(
        one, other, data_range=255.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return weighted_mean(np.asarray(similar, np.float32), weights)


def weighted_mean(values: Floats, weights: Floats) -> float | None:
    """Weighted mean of a map [H, W]; None where less than a pixel weighs."""
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total >= 1 else None


def grow(mask: Floats, share: float) -> Floats:
    """A soft mask widened by a share of its size (the square root of its area), in 0..1."""
    import cv2

    by = round(share * float(mask.sum()) ** 0.5)
    if by < 1:
        return mask
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return np.asarray(cv2.dilate(mask, kernel), np.float32).clip(0, 1)
