"""Regions, parts and the mask pyramid drawn for the eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.pictures.draw_faces import COLOURS, label
from dp_adapter.identity.pictures.picture_files import Picture

# In the order of drawing, which puts the small on the large; the face itself is the sum of what is in it.
PART_COLOURS: Mapping[str, tuple[int, int, int]] = {
    "background": (90, 90, 90), "clothes": (0, 114, 178), "hair": (120, 70, 20), "neck": (213, 94, 0),
    "skin": (240, 180, 140), "ears": (204, 121, 167), "nose": (0, 158, 115), "mouth": (200, 30, 60),
    "brows": (150, 80, 200), "eyes": (86, 180, 233), "glasses": (240, 228, 66),
}  # fmt: skip
_OPACITY = 0.6
_TILE = 192  # px, of the long side of a grid in the pyramid
_GAP = 10


def overlay_masks(picture: Picture, masks: Sequence[Floats]) -> Picture:
    """The picture [H, W, 3] with masks [H, W] over it, each in its own colour."""
    return _blend(picture, [(mask, COLOURS[n % len(COLOURS)]) for n, mask in enumerate(masks)])


def draw_parts(picture: Picture, people: Sequence[Mapping[str, Floats]], weights: Mapping[str, float]) -> Picture:
    """The picture with the parts of everybody in their colours, and on its right the colours' names and weights.

    Args:
        people: for each, masks [H, W] by name.
        weights: by name, told beside the colour.
    """
    named = [name for name in PART_COLOURS if any(name in parts for parts in people)]
    layers = [(np.maximum.reduce([parts[name] for parts in people if name in parts]), name) for name in named]
    drawn = _blend(picture, [(mask, PART_COLOURS[name]) for mask, name in layers])
    height = drawn.shape[0]
    unit = max(0.35, height / 1000)
    step = height // (len(named) + 1) if named else height
    legend = np.zeros((height, round(260 * unit), 3), np.uint8)
    for row, name in enumerate(named):
        top = row * step + step // 4
        legend[top : top + step // 2, 4 : 4 + round(40 * unit)] = PART_COLOURS[name]
        label(legend, [f"{name} {weights.get(name, 0):.2g}"], (round(50 * unit), top + step // 2), unit)
    return np.concatenate([drawn, legend], 1)


def draw_pyramid(rows: Sequence[tuple[str, Sequence[tuple[str, Floats]]]]) -> Picture:
    """Grids beside each other, cells as squares, white where the gate is 1.

    Args:
        rows: a title each, and captions with grids [h, w] in 0..1.
    """
    across = max(len(grids) for _, grids in rows)
    tall = max(_enlarge(grid).shape[0] for _, grids in rows for _, grid in grids)
    wide = max(_enlarge(grid).shape[1] for _, grids in rows for _, grid in grids)
    wide, head = max(wide, 150), 26
    canvas = np.full((len(rows) * (tall + 2 * head + _GAP), across * (wide + _GAP) + _GAP, 3), 40, np.uint8)
    for row, (title, grids) in enumerate(rows):
        top = row * (tall + 2 * head + _GAP) + head
        label(canvas, [title], (_GAP, top), 0.55)
        for column, (caption, grid) in enumerate(grids):
            left = _GAP + column * (wide + _GAP)
            tile = _enlarge(grid)
            canvas[top + head : top + head + tile.shape[0], left : left + tile.shape[1]] = tile[..., None]
            label(canvas, [caption], (left, top + head), 0.5)
    return canvas


def _enlarge(grid: Floats) -> Picture:
    factor = max(1, _TILE // max(grid.shape))
    return (np.repeat(np.repeat(grid, factor, 0), factor, 1) * 255).round().clip(0, 255).astype(np.uint8)


def _blend(picture: Picture, layers: Sequence[tuple[Floats, tuple[int, int, int]]]) -> Picture:
    canvas = picture.astype(np.float32)
    for mask, colour in layers:
        share = _OPACITY * mask[..., None]
        canvas = (1 - share) * canvas + share * np.array(colour, np.float32)
    return canvas.round().clip(0, 255).astype(np.uint8)
