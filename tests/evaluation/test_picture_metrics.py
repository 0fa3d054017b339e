"""Metrics with numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dp_adapter.evaluation import picture_metrics

BLACK, WHITE = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)


def test_cosine_and_harmonic_mean() -> None:
    one, other = np.array([3, 4], np.float32), np.array([4, 3], np.float32)
    assert picture_metrics.cosine(one, other) == pytest.approx(24 / 25)
    assert picture_metrics.cosine(0 * one, other) == 0
    assert picture_metrics.harmonic(0.5, 1.0) == pytest.approx(2 / 3)
    assert picture_metrics.harmonic(-0.1, 0.9) == picture_metrics.harmonic(0.0, 0.9) == 0


def test_drift_weighs_each_side_of_the_mask() -> None:
    picture = BLACK.copy()
    picture[:, :8] = 51  # a fifth of white
    left = np.zeros((16, 16), np.float32)
    left[:, :8] = 1
    assert picture_metrics.drift(picture, BLACK, left) == pytest.approx(0.04)
    assert picture_metrics.drift(picture, BLACK, 1 - left) == 0
    assert picture_metrics.drift(picture, BLACK, np.full((16, 16), 0.5, np.float32)) == pytest.approx(0.02)
    assert picture_metrics.drift(picture, BLACK, np.zeros((16, 16), np.float32)) is None


def test_colour_distance_is_that_of_cielab() -> None:
    everywhere = np.ones((16, 16), np.float32)
    assert picture_metrics.colour_distance(WHITE, BLACK, everywhere) == pytest.approx(100, abs=0.1)
    assert picture_metrics.colour_distance(WHITE, WHITE, everywhere) == 0


def test_structure_is_skimage_s_and_follows_the_weights() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    random = np.random.default_rng(0)
    one = random.integers(0, 256, (32, 32, 3), np.uint8)
    other = one.copy()
    other[:, 16:] = 255 - other[:, 16:]
    near = np.zeros((32, 32), np.float32)
    near[:, :10] = 1
    assert picture_metrics.structural_similarity(other, one, near) == pytest.approx(1)
    far = picture_metrics.structural_similarity(other, one, 1 - near)
    assert far is not None and far < 0.5
    flat = np.full((32, 32, 3), 100, np.uint8)
    # of two flat pictures only the luminance term is left: (2ab + c) / (a^2 + b^2 + c), c = (0.01 * 255)^2
    lighter = np.full((32, 32, 3), 110, np.uint8)
    c = (0.01 * 255) ** 2
    expected = (2 * 100 * 110 + c) / (100**2 + 110**2 + c)
    similar = picture_metrics.structural_similarity(lighter, flat, np.ones((32, 32), np.float32))
    assert similar == pytest.approx(expected, abs=1e-4)
    assert skimage is not None


def test_a_mask_grows_by_a_share_of_its_size() -> None:
    mask = np.zeros((64, 64), np.float32)
    mask[22:42, 22:42] = 1  # 20 x 20
    grown = picture_metrics.grow(mask, 0.1)
    assert grown[32, 20] == 1 and grown[32, 19] == 0
    assert picture_metrics.grow(mask, 0.0) is mask
