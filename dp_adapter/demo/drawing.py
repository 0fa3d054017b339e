"""Draws heat maps, regions, and sheets of pictures with captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dp_adapter.identity.pictures.picture_files import Picture

Values = NDArray[np.float32]

# Viridis at five points: dark is no difference, yellow the largest one.
_COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)
_CELL, _GAP, _LINE, _LETTER = 192, 8, 17, 13  # px of a sheet: side of a picture, space around, line and its letters
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_ACROSS = 27  # letters below a picture before a line is broken


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture of a sheet with the caption below it; without a picture its cell is empty."""

    caption: str
    picture: Picture | None = None


def draw_heat(values: Values, largest: float) -> Picture:
    """Values [H, W] from 0 to ``largest`` in colours."""
    position = np.clip(values / max(largest, 1e-6), 0, 1) * (len(_COLOURS) - 1)
    low = np.minimum(position.astype(int), len(_COLOURS) - 2)
    share = (position - low)[..., None]
    return ((1 - share) * _COLOURS[low] + share * _COLOURS[low + 1]).astype(np.uint8)


def draw_region(picture: Picture, region: Values | None) -> Picture:
    """The picture with everything outside the region dimmed and greyed; no region is the whole picture."""
    if region is None:
        return picture
    from PIL import Image

    height, width = picture.shape[:2]
    fitted = Image.fromarray(region).resize((width, height), Image.Resampling.BILINEAR)
    share = np.asarray(fitted, np.float32)[..., None]
    grey = picture.astype(np.float32).mean(-1, keepdims=True) * 0.35
    return (share * picture + (1 - share) * grey).astype(np.uint8)


def write_sheet(path: Path, rows: Sequence[tuple[str, Sequence[Cell]]]) -> Path:
    """Writes rows of pictures with captions, each under a heading, as one PNG."""
    from PIL import Image, ImageDraw, ImageFont

    font, bold = ImageFont.load_default(_LETTER), ImageFont.load_default(_LETTER + 2)
    lines = [[_wrap(cell.caption) for cell in cells] for _, cells in rows]
    below = [max(map(len, captions)) * _LINE for captions in lines]
    width = _GAP + max(len(cells) for _, cells in rows) * (_CELL + _GAP)
    height = _GAP + sum(_LINE + 6 + _CELL + 4 + text + 2 * _GAP for text in below)
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    y = _GAP
    for (heading, cells), captions, text in zip(rows, lines, below, strict=True):
        draw.text((_GAP, y), heading, _INK, bold)
        y += _LINE + 6
        for column, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
            x = _GAP + column * (_CELL + _GAP)
            if cell.picture is not None:
                page.paste(Image.fromarray(cell.picture).resize((_CELL, _CELL), Image.Resampling.BICUBIC), (x, y))
            draw.multiline_text((x, y + _CELL + 4), "\n".join(caption), _INK, font, spacing=_LINE - _LETTER)
        y += _CELL + 4 + text + 2 * _GAP
    page.save(path, optimize=True)
    return path


def _wrap(caption: str) -> list[str]:
    import textwrap

    return [part for line in caption.splitlines() for part in textwrap.wrap(line, _ACROSS) or [""]]
