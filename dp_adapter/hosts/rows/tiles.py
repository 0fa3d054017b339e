"""Where in its picture a tile lies, found by its content: no extension that samples in tiles has to be known.

Latents are noise at every step, so that a few of their numbers are found at one place only. What the UNet gets is a cut
of the step's latents times one positive number (1 / sqrt(1 + sigma^2) and the like), which need not be known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dp_adapter.core.types import Grid, TileBox
from dp_adapter.errors import HostError

_PROBES = 6  # cells of a tile that are looked for, c numbers each
_GOLDEN = 0.618034  # spreads their columns, so that no two probes share a row or a column


@dataclass(frozen=True)
class TilePosition:
    """A tile's picture in the batch, and its first cell there."""

    picture: int
    top: int
    left: int

    def window(self, size: Grid, whole: Grid) -> TileBox:
        return TileBox(self.top, self.left, size, whole)


def find(tiles: Tensor, pictures: Tensor) -> list[TilePosition] | None:
    """The places of tiles, or None if one of them is not a cut of a picture (noise was added, or it was resized).

    Args:
        tiles: [n, c + more, h, w] as the UNet gets them, in its dtype; inpainting models have more channels behind.
        pictures: [B, c, H, W] as the sampler has them.
    """
    c, (h, w), (height, width) = pictures.shape[1], tiles.shape[-2:], pictures.shape[-2:]
    if h > height or w > width or tiles.shape[1] < c:
        return None
    rounding = torch.finfo(tiles.dtype).eps
    pictures, tiles = pictures.float(), tiles[:, :c].to(pictures.device, torch.float32)
    offsets = (height - h + 1, width - w + 1)
    cells = [(h * (2 * i + 1) // (2 * _PROBES), int(w * ((i + 1) * _GOLDEN % 1))) for i in range(_PROBES)]
    probes = torch.cat([tiles[:, :, y, x] for y, x in cells], 1)  # [n, d]
    there = torch.cat([pictures[:, :, y : y + offsets[0], x : x + offsets[1]] for y, x in cells], 1).flatten(2)
    alike = torch.einsum("nd,bdk->nbk", probes, there) * there.square().sum(1).clamp(min=1e-12).rsqrt()  # [n, B, k]
    best = cast("list[int]", alike.flatten(1).argmax(1).tolist())  # pyright: ignore[reportUnknownMemberType]
    places: list[TilePosition] = []
    for index in best:
        picture, offset = divmod(index, offsets[0] * offsets[1])
        places.append(TilePosition(picture, *divmod(offset, offsets[1])))
    cuts = torch.stack([pictures[p.picture, :, p.top : p.top + h, p.left : p.left + w] for p in places])
    return places if _same(tiles.flatten(1), cuts.flatten(1), max(1e-3, 2 * rounding)) else None


def not_found() -> HostError:
    """What a host raises where a region cannot be placed."""
    return HostError(
        "The picture is made in tiles, and where in it they lie cannot be found, so that no region can be placed",
        "Another extension resizes or blurs the tiles, or adds noise to them (DemoFusion does): switch that off, or "
        "use the identity in the whole picture instead of a region.",
    )


def _same(tiles: Tensor, cuts: Tensor, tolerance: float) -> bool:
    """Whether each tile [n, m] is its cut [n, m] times a positive number."""
    scale = (tiles * cuts).sum(1, keepdim=True) / cuts.square().sum(1, keepdim=True).clamp(min=1e-12)
    wrong = (tiles - scale * cuts).square().sum(1) > tolerance**2 * tiles.square().sum(1)
    return not bool((wrong | (scale[:, 0] <= 0)).any())
