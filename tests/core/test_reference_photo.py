"""The photo's noise level and tokens."""

from __future__ import annotations

import pytest
import torch

from dp_adapter.core.reference_photo import ReferencePhoto, noise_level, shares
from dp_adapter.core.types import Grid, Row, Step
from tests import tiny


@pytest.mark.parametrize("t", [0, 400, 999])
def test_the_level_is_the_schedules(t: int) -> None:
    signal, noise = noise_level(tiny.ALPHAS)(torch.tensor([t, t]))
    assert signal == pytest.approx(float(tiny.ALPHAS[t]) ** 0.5, rel=1e-6)
    assert noise == pytest.approx(float(1 - tiny.ALPHAS[t]) ** 0.5, rel=1e-6)
    assert signal**2 + noise**2 == pytest.approx(1)


def test_between_timesteps_log_sigma_is_linear() -> None:
    level = noise_level(tiny.ALPHAS)
    low, middle, high = (noise / signal for signal, noise in (level(400), level(400.5), level(401.0)))
    assert middle == pytest.approx((low * high) ** 0.5)
    assert level(-3) == level(0) and level(5000.0) == level(999)


def test_shares_of_models_with_another_deviation() -> None:
    """EDM: x / sqrt(sigma^2 + sigma_data^2)."""
    assert shares(3.0, 4.0) == pytest.approx((0.2, 0.6))


def test_the_noise_is_always_the_same() -> None:
    one, other = (ReferencePhoto(torch.ones(4, 3, 5), seed=7) for _ in range(2))
    assert torch.equal(one.add_noise(0.6, 0.8), other.add_noise(0.6, 0.8))
    assert torch.equal(one.add_noise(1, 0), one.latents)
    assert not torch.equal(one.add_noise(0.6, 0.8), ReferencePhoto(one.latents, seed=8).add_noise(0.6, 0.8))


def test_tokens_are_the_cells_that_the_person_covers() -> None:
    mask = tiny.box(0.5, 0, 1, 0.5, (8, 8))
    reference = ReferencePhoto(torch.zeros(4, 8, 8), mask)
    tokens = reference.tokens(Grid(8, 8), 1)
    assert tokens is not None and tokens.tolist() == [2, 3, 6, 7]
    assert ReferencePhoto(reference.latents).tokens(Grid(8, 8), 1) is None
    few = torch.zeros(1, 64, 64)
    few[0, 2, 60] = 1  # less than half of any cell
    tiny_one = ReferencePhoto(reference.latents, few).tokens(Grid(8, 8), 1)
    assert tiny_one is not None and tiny_one.tolist() == [3]


@pytest.mark.parametrize(
    ("changes", "active"),
    [
        ({}, True),
        ({"weight": 0.0}, False),
        ({"start": 0.6, "end": 0.4}, False),
        ({"mask": torch.zeros(1, 8, 8)}, False),
    ],
)
def test_whether_it_is_ever_looked_at(changes: dict[str, object], active: bool) -> None:
    reference = ReferencePhoto(torch.zeros(4, 8, 8), **changes)  # type: ignore[arg-type]
    assert reference.ever_active == active and bool(reference.at(0.5)) == active
    assert ReferencePhoto(torch.zeros(4, 8, 8), start=0.6).at(0.5) == 0


def test_rows_of_photos_come_last_and_go() -> None:
    step = Step(0.5, (Row("cond"), Row("uncond")), Grid(8, 8)).twinned()
    wide = step.with_references((1, 1))
    assert wide.rows[4:] == (Row("text"), Row("text")) and wide.references == (1, 1)
    assert wide.without_references() == step
