"""Visually sensitive regions: masks in picture space, on the UNet's grids, and as positions of rows.

Shapes: S samples of a batch (1 where they share a mask), N positions of a grid, n positions inside a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from dp_adapter.core.types import Grid, Level, Row, RowKind, TileBox

ROUNDING = 1 + 2**-20  # more than rounding can add to the sum of eight gates
_WIDEST = 32.0  # px, sigma of a Gaussian that is taken of every pixel
_FARTHEST = 8  # a Gaussian that is so wide leaves nothing but a mean of the edges
GATE_POWERS: Mapping[Level, float] = MappingProxyType({"down": 1.0, "middle": 2.0, "up": 0.75})


def box_mask(x0: float, y0: float, x1: float, y1: float, size: Grid) -> Tensor:
    """A filled rectangle, its edges anti-aliased to the share of each cell that they cover.

    Args:
        x0, y0, x1, y1: edges as fractions of width and height.

    Returns:
        [height, width] in [0, 1].
    """

    def covered(low: float, high: float, cells: int) -> Tensor:
        left = torch.arange(cells, dtype=torch.float32)
        return (torch.clamp(left + 1, max=high * cells) - torch.clamp(left, min=low * cells)).clamp(0, 1)

    return covered(y0, y1, size.height)[:, None] * covered(x0, x1, size.width)[None, :]


def grow_and_feather(mask: Tensor, grow: float, feather: float) -> Tensor:
    """Dilates a mask by ``grow`` pixels, then softens its edge by a Gaussian with sigma = ``feather`` pixels.

    The time it takes grows with the pixels, hardly with either of the two. A Gaussian wider than ``_WIDEST`` weighs
    means of several pixels, which changes a mask by less than 0.001. More than ``_FARTHEST`` longer sides are as many.

    Args:
        mask: [..., H, W] in [0, 1], in picture space.

    Returns:
        [..., H, W]
    """
    flat = mask.reshape(-1, *mask.shape[-2:]).float()
    grow, feather = (min(reach, _FARTHEST * max(mask.shape[-2:])) for reach in (grow, feather))
    for axis in (1, 2):
        flat = _dilate(flat, min(round(grow), flat.shape[axis] - 1), axis)
    if feather > _WIDEST:
        flat = _blur_widely(_blur_widely(flat, feather, 1), feather, 2)
    elif (reach := round(3 * feather)) > 0:
        kernel = _gaussian(feather, reach, flat)
        around = F.pad(flat[:, None], (reach, reach, reach, reach), mode="replicate")
        flat = F.conv2d(F.conv2d(around, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]
    return flat.reshape(mask.shape).clamp(0, 1)


def _dilate(mask: Tensor, radius: int, axis: int) -> Tensor:
    """The greatest value of [M, H, W] within ``radius`` along an axis, from windows that double in width."""
    greatest, width, wanted = _extend(mask, radius, axis), 1, 2 * radius + 1
    while width < wanted:
        step = min(width, wanted - width)
        left = greatest.shape[axis] - step
        greatest = torch.maximum(greatest.narrow(axis, 0, left), greatest.narrow(axis, step, left))
        width += step
    return greatest


def _blur_widely(mask: Tensor, sigma: float, axis: int) -> Tensor:
    """The same Gaussian along one axis of [M, H, W], over means of several pixels, then interpolated."""
    pixels = int(2 * sigma / _WIDEST)
    most = (round(3 * sigma) + 0.5) / pixels  # where it is cut off, within a mean
    kernel = _gaussian(sigma / pixels, math.ceil(most - 0.5), mask, most)
    reach = len(kernel) // 2
    size, along = ((pixels, 1), (-1, 1)) if axis == 1 else ((1, pixels), (1, -1))
    # One mean more on each side: it is the edge's alone, and the interpolation needs it.
    means = F.avg_pool2d(_extend(mask, pixels, axis, -mask.shape[axis] % pixels)[:, None], size)
    soft = F.conv2d(_extend(means[:, 0], reach, axis)[:, None], kernel.reshape(1, 1, *along))
    finer = F.interpolate(soft, scale_factor=tuple(map(float, size)), mode="bilinear")[:, 0]
    return finer.narrow(axis, pixels, mask.shape[axis])


def _gaussian(sigma: float, reach: int, like: Tensor, most: float = math.inf) -> Tensor:
    """A kernel [2 * reach + 1] of sum 1; of what lies beyond ``most``, only the share within it counts."""
    offsets = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2) * (most + 0.5 - offsets.abs()).clamp(0, 1)
    return kernel / kernel.sum()


def _extend(mask: Tensor, by: int, axis: int, further: int = 0) -> Tensor:
    """[M, H, W] with its edges repeated along an axis, ``further`` times more at the end."""
    ends = (by, by + further)
    return F.pad(mask[:, None], (0, 0, *ends) if axis == 1 else (*ends, 0, 0), mode="replicate")[:, 0]


def on_grid(mask: Tensor, latent: Grid, halvings: int) -> Tensor:
    """Area-resizes a picture-space mask to the latent grid, then halves it with ceil as the UNet does.

    Args:
        mask: [S, H, W] in [0, 1], of any size: it covers the whole picture.

    Returns:
        [S, h, w], the grid ``latent.halved(halvings)``.
    """
    level = F.interpolate(mask[None].float(), (latent.height, latent.width), mode="area")
    for _ in range(halvings):
        # count_include_pad=False: a cell of the last odd row or column averages only what exists.
        level = F.avg_pool2d(level, 2, stride=2, ceil_mode=True, count_include_pad=False)
    return level[0]


def cut_tiles(mask: Tensor, tiles: Sequence[tuple[int, TileBox]]) -> Tensor:
    """Cuts tiles out of a mask: the resize to the whole picture's latents comes first, so any offset is exact.

    Args:
        mask: [S, H, W] in [0, 1] in picture space.
        tiles: V tiles of one size, each with its sample.

    Returns:
        [V, h, w], on the tiles' latents.
    """
    whole = {box.whole: on_grid(mask, box.whole, 0) for _, box in tiles}
    cut: list[Tensor] = []
    for sample, box in tiles:
        rows = slice(box.top, box.top + box.size.height)
        columns = slice(box.left, box.left + box.size.width)
        cut.append(whole[box.whole][sample if len(mask) > 1 else 0, rows, columns])
    return torch.stack(cut)


def gains(
    masks: Sequence[Tensor | None], latent: Grid, halvings: int, level: Level, powers: Mapping[Level, float]
) -> list[Tensor | None]:
    """The training-free gate G_k = M_k^p of every identity at one grid, scaled so that they sum to at most 1.

    Args:
        masks: per identity [S, H, W] in picture space, or None for the whole picture.

    Returns:
        Per identity [S, N]; None for a single identity in the whole picture.
    """
    if len(masks) == 1 and masks[0] is None:
        return [None]
    grid = latent.halved(halvings)
    shared = [
        torch.ones(1, len(grid)) if mask is None else on_grid(mask, latent, halvings).flatten(1) ** powers[level]
        for mask in masks
    ]
    device = next((mask.device for mask in masks if mask is not None), shared[0].device)
    shared = [gain.to(device) for gain in shared]
    total = add_gates(shared)
    overlap = torch.where(total > 1, total * ROUNDING, torch.ones_like(total))
    return [gain / overlap for gain in shared]


def add_gates(gains: Sequence[Tensor]) -> Tensor:
    """Sum of gates [S, N], each for one sample or for all of them."""
    total = gains[0]
    for gain in gains[1:]:
        total = total + gain
    return total


@dataclass(frozen=True)
class RowRegion:
    """Where one identity acts in one row.

    Attributes:
        row: index into the batch.
        positions: [n] indices into the row's N positions, or None for all of them.
        gain: [n, 1] gate values, or None where the gate is 1.
    """

    row: int
    kind: RowKind
    positions: Tensor | None
    gain: Tensor | None


def locate(rows: Sequence[Row], gain: Tensor | None, like: Tensor) -> list[RowRegion]:
    """Finds the positions of an identity's gate, row by row; rows without identity and empty masks give none.

    Args:
        gain: [S, N] or None for 1 everywhere.
        like: tensor with the dtype and device of the hidden states.

    Raises:
        IndexError: a row belongs to a sample that the gate does not have.
    """
    if gain is None:
        return [RowRegion(i, row.kind, None, None) for i, row in enumerate(rows) if row.kind != "text"]
    regions: list[RowRegion] = []
    per_sample: dict[int, tuple[Tensor, Tensor]] = {}
    for i, row in enumerate(rows):
        sample = row.sample if len(gain) > 1 else 0
        if row.kind == "text":
            continue
        if sample not in per_sample:
            positions = gain[sample].nonzero().flatten()
            values = gain[sample, positions, None]
            per_sample[sample] = positions.to(like.device), values.to(like)
        positions, values = per_sample[sample]
        if len(positions):
            regions.append(RowRegion(i, row.kind, positions, values))
    return regions


@dataclass(frozen=True)
class FlatRegion:
    """Several rows' regions over the flattened batch [R * N]: a slice when whole neighbouring rows are meant."""

    positions: Tensor | slice
    gain: Tensor | None


def join_rows(regions: Sequence[RowRegion], n: int, device: torch.device) -> FlatRegion:
    """Joins the regions of one identity, all with positions or all without, for rows of ``n`` positions."""
    rows = [region.row for region in regions]
    if all(region.positions is None for region in regions):
        if rows == list(range(rows[0], rows[-1] + 1)):
            return FlatRegion(slice(rows[0] * n, (rows[-1] + 1) * n), None)
        whole = [torch.arange(row * n, (row + 1) * n, device=device) for row in rows]
        return FlatRegion(torch.cat(whole), None)
    positions = [p.positions + p.row * n for p in regions if p.positions is not None]
    gains = [p.gain for p in regions if p.gain is not None]
    return FlatRegion(torch.cat(positions), torch.cat(gains))
