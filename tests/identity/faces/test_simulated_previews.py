"""Pictures as they form, and what is drawn of regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.simulated_previews import noise_at, simulate_preview
from dp_adapter.identity.pictures.draw_masks import draw_parts, draw_pyramid, overlay_masks
from dp_adapter.identity.pictures.picture_files import load_picture


def test_noise_falls_as_the_picture_forms() -> None:
    noise = [noise_at(progress) for progress in (0, 0.15, 0.3, 0.55, 1)]
    assert noise == sorted(noise, reverse=True)
    assert noise[0] == pytest.approx(14.61, abs=0.02) and noise[-1] == pytest.approx(0.0292, abs=1e-3), "SD's own"


def test_what_is_large_forms_first(portrait: Path) -> None:
    picture = load_picture(portrait)
    early, late, done = (simulate_preview(picture, progress) for progress in (0.15, 0.55, 1.0))
    error = [float(np.abs(one.astype(int) - picture).mean()) for one in (early, late, done)]
    assert error[0] > error[1] > error[2] and error[2] < 4

    def detail(one: np.ndarray) -> float:
        return float(np.abs(np.diff(one[..., 1].astype(int), axis=1)).mean())

    assert detail(early) < detail(late)
    assert np.array_equal(early, simulate_preview(picture, 0.15)) and not np.array_equal(
        early, simulate_preview(picture, 0.15, seed=1)
    )
    odd = simulate_preview(picture[:301, :203], 0.3)
    assert odd.shape == (301, 203, 3) and odd.dtype == np.uint8
    assert len(YuNet().detect(simulate_preview(picture, 0.55))) == 1 and not YuNet().detect(
        simulate_preview(picture, 0.0)
    )


def test_masks_are_drawn() -> None:
    grey = np.full((60, 90, 3), 128, np.uint8)
    left, half = np.zeros((60, 90), np.float32), np.full((60, 90), 0.5, np.float32)
    left[:, :30] = 1
    drawn = overlay_masks(grey, [left, np.zeros_like(left)])
    assert np.array_equal(drawn[:, 30:], grey[:, 30:]) and (drawn[:, :30] != 128).any(-1).all()
    legend = draw_parts(grey, [{"hair": left, "eyes": half}, {"hair": half}], {"hair": 1.0})
    assert legend.shape[0] == 60 and legend.shape[1] > 90 and legend[:, 90:].any()
    assert draw_parts(grey, [{}], {}).shape[0] == 60
    cells = np.eye(8, dtype=np.float32)
    pyramid = draw_pyramid([("person 0", [("down 8x8", cells), ("middle 4x4", cells[:4, :4])]), ("person 1", [])])
    assert pyramid.max() == 255 and pyramid.shape[1] > 2 * 150
