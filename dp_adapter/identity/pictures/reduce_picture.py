"""Large pictures made smaller without a second copy of them: a band of rows at a time, from any source of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image

Rows: TypeAlias = "Callable[[int, int], Image]"
"""Rows top to bottom of a picture, as an image of 8 bits in one mode: L, RGB, RGBA or CMYK."""

_BAND = 2**20  # px


def split_bands(width: int, height: int) -> Iterator[tuple[int, int]]:
    """First row and the one after the last of each band."""
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        yield top, min(height, top + rows)


def reduce_by_area(rows: Rows, size: tuple[int, int], target: tuple[int, int], close: Callable[[], None]) -> Image:
    """What Pillow's ``resize(target, BOX)`` makes of the whole: it, too, goes along the rows first.

    But for pictures twice as high as wide from Pillow 13 on, whose levels differ here and there: in grey by one, with
    transparency by up to four.

    Args:
        close: called when no rows are needed any more, so that the whole and the reduced picture never exist together.
    """
    from PIL import Image

    box = Image.Resampling.BOX
    narrow = mode = None
    for top, bottom in split_bands(*size):
        band = rows(top, bottom)
        mode = band.mode
        if target != size:
            # colours of what is transparent shall not count; Pillow does so by itself, but for each pass anew
            band = band.convert("RGBa") if mode == "RGBA" else band
            band = band.resize((target[0], bottom - top), box)
        if narrow is None:
            narrow = Image.new(band.mode, (target[0], size[1]))
        narrow.paste(band, (0, top))
    close()
    assert narrow is not None and mode is not None
    reduced = narrow.resize(target, box) if target[1] != size[1] else narrow
    return reduced if reduced.mode == mode else reduced.convert(mode)


def bytes_to_decode(image: Image, full: tuple[int, int], width: int) -> int:
    """What decoding and narrowing to a width takes at most, from what the header says of an opened image.

    Measured over Pillow 9.5 to 13: four bytes a pixel but for grey and palettes, besides what each format's library
    keeps until all is decoded.

    Args:
        full: the file's own size, where the image is to be decoded at a smaller one (JPEG).
    """
    grey = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
    pixel = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    narrow = (1 if grey and "transparency" not in image.info else 4) * min(1.0, width / image.width)
    kept = _kept_by_library(image, pixel) * full[0] * full[1]
    return round(pixel * image.width * image.height + max(narrow * image.width * image.height, kept))


def _kept_by_library(image: Image, pixel: int) -> float:
    """Bytes a pixel besides the picture itself."""
    if image.format in ("WEBP", "AVIF", "HEIF"):
        return 12.0  # WebP: two canvases and the frame
    if image.format == "JPEG2000":
        return 6.0 * len(image.getbands())
    if image.format in ("JPEG", "MPO") and ("progressive" in image.info or "progression" in image.info):
        return 2 * _samples(image)  # all coefficients
    return pixel * _strip_share(image) if image.format == "TIFF" else 0.0


def _samples(image: Image) -> float:
    """Of all channels, for a pixel: 1.5 where colours have half the resolution."""
    sampling = [(across, down) for _, across, down, _ in getattr(image, "layer", [])] or [(1, 1)] * 4
    largest = max(across for across, _ in sampling) * max(down for _, down in sampling)
    return sum(across * down for across, down in sampling) / largest


def _strip_share(image: Image) -> float:
    """The share of the TIFF that is unpacked at once."""
    tags: dict[int, int] = getattr(image, "tag_v2", {})
    rows = tags.get(278, image.height) if 323 not in tags else tags[323]
    return min(1.0, rows / image.height)
