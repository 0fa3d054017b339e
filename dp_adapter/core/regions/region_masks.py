"""Visually sensitive regions: masks in picture space, on the UNet's grids, and as positions of rows.

Shapes: S samples of a batch (1 where they share a mask), N positions of a grid, n positions inside a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from dp_adapter.core.types import Grid, Level, Row, RowKind, TileBox

ROUNDING = 1 + 2**-20  # more than rounding can add to the sum of eight gates
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

    Args:
        mask: [..., H, W] in [0, 1], in picture space.

    Returns:
        [..., H, W]
    """
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if (radius := round(grow)) > 0:
        flat = F.max_pool2d(flat, (2 * radius + 1, 1), stride=1, padding=(radius, 0))
        flat = F.max_pool2d(flat, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    if (reach := round(3 * feather)) > 0:
        offsets = torch.arange(-reach, reach + 1, dtype=flat.dtype, device=flat.device)
        kernel = torch.exp(-0.5 * (offsets / feather) ** 2)
        kernel = kernel / kernel.sum()
        flat = F.pad(flat, (reach, reach, reach, reach), mode="replicate")
        flat = F.conv2d(F.conv2d(flat, kernel[None, None, :, None]), kernel[None, None, None, :])
    return flat.reshape(mask.shape).clamp(0, 1)


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
