"""Masks in picture space, their pyramid, and where they act."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dp_adapter.core.regions import region_masks
from dp_adapter.core.types import Grid, Level, Row

POWERLESS: dict[Level, float] = {"down": 1.0, "middle": 1.0, "up": 1.0}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# Grids.


def test_halving_is_what_the_unets_convolutions_do() -> None:
    """Every side that the WebUI offers from 512 to 1024 pixels, through real stride-2 convolutions."""
    stride = nn.Conv2d(1, 1, 3, stride=2, padding=1, device="meta")
    for pixels in range(512, 1025, 8):
        x = torch.empty(1, 1, pixels // 8, 64, device="meta")
        for times in range(4):
            grid = Grid(pixels // 8, 64).halved(times)
            assert (grid.height, grid.width) == tuple(x.shape[-2:])
            assert len(grid) == x.shape[-2] * x.shape[-1]
            x = stride(x)


def test_masks_have_the_grid_of_every_level() -> None:
    mask = torch.ones(1, 100, 70)
    for height in range(64, 129, 9):
        for width in range(64, 129, 13):
            for halvings in range(4):
                grid = Grid(height, width).halved(halvings)
                level = region_masks.on_grid(mask, Grid(height, width), halvings)
                assert level.shape == (1, grid.height, grid.width)
                torch.testing.assert_close(level, torch.ones_like(level))


# Area resize.


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_area_resize_of_whole_cells_is_their_mean(height: int, width: int, up: int, across: int) -> None:
    cells = rand(1, height, width, seed=height * 41 + width)
    mask = cells.repeat_interleave(up, 1).repeat_interleave(across, 2)
    torch.testing.assert_close(region_masks.on_grid(mask, Grid(height, width), 0), cells)


@pytest.mark.parametrize("size", [(128, 96), (512, 768), (64, 64)])
def test_halving_keeps_the_mean_on_even_grids(size: tuple[int, int]) -> None:
    mask = rand(2, *size)
    for halvings in range(4):
        level = region_masks.on_grid(mask, Grid(64, 96), halvings)
        torch.testing.assert_close(level.mean((1, 2)), mask.mean((1, 2)), atol=1e-5, rtol=0)


def test_the_last_cell_of_an_odd_side_averages_only_what_exists() -> None:
    mask = torch.zeros(1, 5, 5)
    mask[:, 4] = 1
    assert region_masks.on_grid(mask, Grid(5, 5), 1)[0].tolist() == [[0] * 3, [0] * 3, [1] * 3]
    mask[:, 4, 4] = 0
    assert region_masks.on_grid(mask, Grid(5, 5), 1)[0, 2].tolist() == [1, 1, 0]


def test_a_mask_may_be_smaller_than_the_grid() -> None:
    mask = torch.tensor([[[0.0, 1.0]]])
    assert region_masks.on_grid(mask, Grid(2, 4), 0)[0].tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.float64], ids=str)
def test_masks_of_any_type(dtype: torch.dtype) -> None:
    assert region_masks.on_grid(torch.ones(1, 8, 8).to(dtype), Grid(4, 4), 1).tolist() == [[[1.0] * 2] * 2]


# Making masks.


def test_a_box_on_cell_edges_is_hard() -> None:
    mask = region_masks.box_mask(0.25, 0.5, 0.75, 1.0, Grid(8, 8))
    expected = torch.zeros(8, 8)
    expected[4:, 2:6] = 1
    assert torch.equal(mask, expected)


@given(*[st.floats(0, 1)] * 4, st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_a_box_covers_its_area(xa: float, xb: float, ya: float, yb: float, height: int, width: int) -> None:
    (x0, x1), (y0, y1) = sorted((xa, xb)), sorted((ya, yb))
    mask = region_masks.box_mask(x0, y0, x1, y1, Grid(height, width))
    assert mask.shape == (height, width)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert math.isclose(mask.sum().item(), (x1 - x0) * (y1 - y0) * height * width, abs_tol=1e-3)


@pytest.mark.parametrize("box", [(0.7, 0.2, 0.3, 0.8), (1.2, 0, 1.5, 1), (-1, 0, -0.5, 1)])
def test_an_empty_box_is_empty(box: tuple[float, float, float, float]) -> None:
    assert not region_masks.box_mask(*box, Grid(6, 6)).any()


def test_a_box_beyond_the_picture_is_cut() -> None:
    assert torch.equal(
        region_masks.box_mask(-1, -1, 2, 0.5, Grid(4, 4)), region_masks.box_mask(0, 0, 1, 0.5, Grid(4, 4))
    )


def test_grow_dilates_by_a_square() -> None:
    mask = torch.zeros(9, 12)
    mask[4, 5] = 1
    grown = region_masks.grow_and_feather(mask, 2, 0)
    expected = torch.zeros(9, 12)
    expected[2:7, 3:8] = 1
    assert torch.equal(grown, expected)
    assert torch.equal(region_masks.grow_and_feather(mask, 0, 0), mask)


def test_feather_is_a_gaussian() -> None:
    step = torch.zeros(1, 41, 41)
    step[:, :, 20:] = 1
    soft = region_masks.grow_and_feather(step, 0, 4)
    assert soft.shape == step.shape
    profile = soft[0, 20]
    assert (profile.diff() >= 0).all()
    for offset in (-6, -2, 0, 3, 7):
        expected = 0.5 * (1 + math.erf((offset + 0.5) / (4 * math.sqrt(2))))
        assert abs(profile[20 + offset].item() - expected) < 0.01
    torch.testing.assert_close(soft[0, 0], profile)  # edges are replicated, not darkened
    assert region_masks.grow_and_feather(torch.ones(1, 7, 5), 3, 9).min() > 0.999


def plain_grow_and_feather(mask: Tensor, grow: float, feather: float) -> Tensor:
    """What grow and feather mean, with kernels as large as they are, for a mask [H, W]."""
    radius, reach = round(grow), round(3 * feather)
    grown = F.max_pool2d(mask[None, None], 2 * radius + 1, stride=1, padding=radius)
    if not reach:
        return grown[0, 0]
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / feather) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(grown, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[0, 0]


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["noise", "cells", "box"]),
    st.one_of(st.just(0.0), st.floats(0, 8), st.floats(0, 35)),
    st.one_of(st.just(0.0), st.floats(0, 8), st.floats(0, 32), st.floats(32, 70)),
)
@settings(max_examples=80, deadline=None)
def test_grow_and_feather_are_as_their_plain_definition(
    height: int, width: int, kind: str, grow: float, feather: float
) -> None:
    mask = rand(height, width, seed=height * 71 + width)
    if kind == "cells":
        mask = (mask > 0.9).float()
    elif kind == "box":
        mask = region_masks.box_mask(0.21, 0.1, 0.72, 0.96, Grid(height, width))
    grown = region_masks.grow_and_feather(mask, grow, 0)
    assert torch.equal(grown, plain_grow_and_feather(mask, grow, 0))
    soft = region_masks.grow_and_feather(mask, grow, feather)
    # wider than 8 times the mask's longer side it is taken for that wide
    wide = feather > 32 or feather > 8 * max(height, width)
    torch.testing.assert_close(soft, plain_grow_and_feather(mask, grow, feather), atol=2e-3 if wide else 1e-6, rtol=0)


@pytest.mark.parametrize(("grow", "feather"), [(0.1, 0.05), (0.0, 0.05), (0.0, 0.0), (0.25, 0.12)])
def test_ordinary_values_are_as_their_plain_definition_to_the_last_digits(grow: float, feather: float) -> None:
    mask = region_masks.box_mask(0.3, 0.2, 0.65, 0.6, Grid(256, 192))
    side = float(mask.sum()) ** 0.5
    made = region_masks.grow_and_feather(mask, grow * side, feather * side)
    torch.testing.assert_close(made, plain_grow_and_feather(mask, grow * side, feather * side), atol=2e-7, rtol=0)


def test_no_grow_or_feather_is_too_much() -> None:
    mask = region_masks.box_mask(0, 0, 0.5, 1, Grid(40, 60))
    for grow, feather in ((1e300, 0.0), (math.inf, 1.0), (0.0, 1e9), (0.0, math.inf)):
        made = region_masks.grow_and_feather(mask, grow, feather)
        assert made.shape == mask.shape and made.min() >= 0 and made.max() <= 1
        assert made.min() > 0.999 if grow else abs(float(made.mean()) - 0.5) < 0.05


def test_grow_comes_before_feather() -> None:
    mask = torch.zeros(1, 60, 60)
    mask[:, 20:40, 20:40] = 1
    assert region_masks.grow_and_feather(mask, 8, 3)[0, 20:40, 20:40].min() > 0.99


# Gains.


def test_one_identity_in_the_whole_picture_has_no_gate() -> None:
    assert region_masks.gains([None], Grid(8, 8), 1, "up", POWERLESS) == [None]


@pytest.mark.parametrize("level", ["down", "middle", "up"])
def test_the_power_of_each_level(level: Level) -> None:
    mask = rand(1, 64, 64)
    (gain,) = region_masks.gains([mask], Grid(8, 8), 1, level, region_masks.GATE_POWERS)
    assert gain is not None
    power = {"down": 1.0, "middle": 2.0, "up": 0.75}[level]
    torch.testing.assert_close(gain, region_masks.on_grid(mask, Grid(8, 8), 1).flatten(1) ** power)


@given(st.integers(2, 8), st.integers(0, 10_000), st.sampled_from(["down", "middle", "up"]))
@settings(max_examples=40, deadline=None)
def test_gates_never_sum_to_more_than_one(count: int, seed: int, level: Level) -> None:
    masks: list[Tensor | None] = [rand(1, 16, 24, seed=seed + i) for i in range(count)]
    masks[seed % count] = None if seed % 3 == 0 else masks[seed % count]
    each = region_masks.gains(masks, Grid(8, 12), 1, level, region_masks.GATE_POWERS)
    gates = [gain for gain in each if gain is not None]
    assert len(gates) == count
    assert region_masks.add_gates(gates).max() <= 1


def test_only_overlaps_are_normalised() -> None:
    left, right = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    left[:, :, :3] = 1
    right[:, :, 2:] = 0.5
    a, b = region_masks.gains([left, right], Grid(2, 4), 0, "down", POWERLESS)
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a[0, :4], torch.tensor([1, 1, 1 / 1.5, 0]))
    torch.testing.assert_close(b[0, :4], torch.tensor([0, 0, 0.5 / 1.5, 0.5]))


def test_masks_for_each_picture_meet_a_shared_one() -> None:
    gates = region_masks.gains([torch.ones(1, 4, 4), torch.ones(3, 4, 4)], Grid(4, 4), 0, "down", POWERLESS)
    assert [None if gate is None else tuple(gate.shape) for gate in gates] == [(3, 16), (3, 16)]
    for gate in gates:
        assert gate is not None
        torch.testing.assert_close(gate, torch.full((3, 16), 0.5), atol=1e-6, rtol=0)


# Places.

ROWS = [Row("text"), Row("cond", 1), Row("uncond", 0), Row("cond", 0)]


def test_regions_name_rows_positions_and_gains() -> None:
    gain = torch.tensor([[0.0, 0.25, 1.0], [0.0, 0.0, 0.0]])
    like = torch.zeros(4, 3, 2, dtype=torch.float16)
    regions = region_masks.locate(ROWS, gain, like)
    assert [(p.row, p.kind) for p in regions] == [(2, "uncond"), (3, "cond")]
    for region in regions:
        assert region.positions is not None
        assert region.gain is not None
        assert region.positions.tolist() == [1, 2]
        assert region.gain.dtype == torch.float16
        assert region.gain.tolist() == [[0.25], [1.0]]


def test_without_a_gate_every_row_but_text_is_whole() -> None:
    regions = region_masks.locate(ROWS, None, torch.zeros(1))
    assert [(p.row, p.positions, p.gain) for p in regions] == [(1, None, None), (2, None, None), (3, None, None)]


@pytest.mark.parametrize(("rows", "is_slice"), [([0, 1], True), ([1, 2, 3], True), ([0, 2], False), ([3], True)])
def test_flatten_whole_rows(rows: list[int], is_slice: bool) -> None:
    flat = region_masks.join_rows([region_masks.RowRegion(r, "cond", None, None) for r in rows], 5, torch.device("cpu"))
    assert isinstance(flat.positions, slice) == is_slice
    assert flat.gain is None
    every = torch.arange(20)[flat.positions]
    assert every.tolist() == [r * 5 + i for r in rows for i in range(5)]


def test_flatten_masked_rows() -> None:
    one = region_masks.RowRegion(1, "cond", torch.tensor([0, 4]), torch.tensor([[0.5], [1.0]]))
    two = region_masks.RowRegion(3, "cond", torch.tensor([2]), torch.tensor([[0.25]]))
    flat = region_masks.join_rows([one, two], 5, torch.device("cpu"))
    assert isinstance(flat.positions, Tensor)
    assert flat.positions.tolist() == [5, 9, 17]
    assert flat.gain is not None
    assert flat.gain.flatten().tolist() == [0.5, 1.0, 0.25]
