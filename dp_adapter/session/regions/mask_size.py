"""How fine the masks of a request are made: as the picture, unless they would have too many pixels together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dp_adapter.core.types import Grid
from dp_adapter.session.scene import Scene
from dp_adapter.settings import Region

MOST_PIXELS = 2**23  # of all masks of a request together, 32 MB: eight at 1024 x 1024
MOST_MOVING = 2**21  # of one picture's masks that move, which are made again at every look: eight at 512 x 512
_LONGEST_MOVING = 512  # px of the long side: more than any latent grid resolves
_CELL = 8  # px of a picture to a cell of its latents


def choose_size(scene: Scene, masks: int) -> Grid:
    """The size of each of so many masks: whole pixels to a cell of the latents, eight as in the picture or fewer.

    One a cell is always left: the UNet itself sees no more, and works longer on it.
    """
    size = Grid(scene.height, scene.width)
    for pixels in range(_CELL - 1, 0, -1):
        if masks * len(size) <= MOST_PIXELS:
            break
        size = Grid(*(max(1, round(side * pixels / _CELL)) for side in (scene.height, scene.width)))
    return size


def choose_moving_size(scene: Scene, masks: int) -> Grid:
    """The size of each of so many masks that move while the picture forms."""
    return limit_side(Grid(scene.height, scene.width), min(_LONGEST_MOVING, math.isqrt(MOST_MOVING // masks)))


def count_masks(regions: Sequence[Region], persons: int, pictures: int = 1) -> int:
    """How many masks a request takes: one a region, automatic ones for each picture of so many.

    Args:
        persons: in the photos, each with a region at least.
    """
    drawn = sum(region.kind in ("box", "mask") for region in regions)
    automatic = sum(region.kind == "auto" for region in regions)
    return drawn + max(automatic, persons, 1) * max(pictures, 1)


def limit_side(size: Grid, side: int) -> Grid:
    """The same shape with a long side of at most ``side``."""
    factor = min(1.0, side / max(size.height, size.width))
    return Grid(max(1, round(size.height * factor)), max(1, round(size.width * factor)))
