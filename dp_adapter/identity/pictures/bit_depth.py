"""Bit depths, palettes, inks and transparency brought to 8-bit RGB."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.reduce_picture import Rows, split_bands

if TYPE_CHECKING:
    from PIL.Image import Image

Levels: TypeAlias = tuple[float, float]
"""The value that becomes 0, and what the others' distance from it is multiplied by."""

_KEPT = {"1": "L", "L": "L", "LA": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "RGBA": "RGBA", "CMYK": "CMYK"}


def array_rows(array: NDArray[Any]) -> Rows:
    """An array [H, W] or [H, W, 3|4] of uint8, uint16, bool or float in 0..1, its rows on demand.

    Raises:
        PictureError: another type, or floats outside 0..1, whose white is unknown.
    """
    from PIL import Image

    if array.dtype.name not in ("uint8", "uint16", "bool") and not np.issubdtype(array.dtype, np.floating):
        raise PictureError(f"An array of type {array.dtype} is not a picture", "Give uint8, uint16, bool or float.")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN compares false
            raise PictureError(f"A float array with values {low:g} to {high:g} is not a picture", "Scale it to 0..1.")
    return lambda top, bottom: Image.fromarray(_to_bytes(array[top:bottom]))


def image_rows(image: Image, key: int | tuple[int, ...] | None) -> Rows:
    """A decoded image in 8 bits, its rows on demand.

    Args:
        key: from ``key_in_8bit``.
    """
    levels = find_levels(image)
    return lambda top, bottom: to_8bit(_cut_rows(image, top, bottom), key, levels)


def _cut_rows(image: Image, top: int, bottom: int) -> Image:
    """Rows of an image, without a copy where these are all. Pillow 9 holds cut ones against the host's own limit."""
    return image if (top, bottom) == (0, image.height) else image.crop((0, top, image.width, bottom))


def _to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    return _round(array / np.float32(257) if array.dtype == np.uint16 else array * np.float32(255))


def key_in_8bit(image: Image) -> int | tuple[int, ...] | None:
    """The one value of a greyscale or RGB picture that is transparent, as decoded pixels have it; None for none.

    PNG states it in the depth of the file (1 to 16 bits). 16 bits of grey are decoded as they are.

    Args:
        image: opened and not decoded yet, when the file's depth is still known.
    """
    key: Any = image.info.get("transparency")
    if image.mode not in ("1", "L", "RGB", "I", "I;16", "I;16L", "I;16B") or not isinstance(key, int | tuple):
        return None
    tiles: Any = getattr(image, "tile", None)
    depth = str(tiles[0][3]) if tiles else ""  # Pillow's raw mode; other formats have their own, which are not these
    if image.mode == "1":
        return 255 if key else 0
    if isinstance(key, int):
        return key * {"L;2": 85, "L;4": 17}.get(depth, 1)
    values = cast("tuple[int, ...]", key)
    return tuple(value >> 8 for value in values) if "RGB;16B" in depth else values


def to_8bit(image: Image, key: int | tuple[int, ...] | None, levels: Levels | None) -> Image:
    """The same picture, or rows of it, in mode L, RGB, RGBA or CMYK, all of which can be resized by area.

    Args:
        key: from ``key_in_8bit``.
        levels: from ``find_levels``.
    """
    from PIL import Image

    if levels is not None:
        values = np.asarray(image)
        grey = Image.fromarray(_grey(values, levels))
        return grey if key is None else _clear_key(grey, np.equal(values, key))
    if key is not None:
        plain = image.convert("L") if image.mode == "1" else image
        return _clear_key(plain, np.equal(np.asarray(plain), key))
    if image.mode == "P" and ("transparency" in image.info or (image.palette and image.palette.mode.endswith("A"))):
        return image.convert("RGBA")
    if image.mode == "La":  # has no way to RGBA of its own
        image = image.convert("LA")
    mode = _KEPT.get(image.mode, "RGB")
    return image if image.mode == mode else image.convert(mode)


def find_levels(image: Image) -> Levels | None:
    """How deep greyscale becomes 8 bits, of a decoded picture; None for all else.

    16 bits count by their full range, 32 bits by the smallest usual one that holds the values: such files state no
    white. 0..1 (float), 0..255 and 0..65535 are taken at face value, all else is stretched.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return None
    if image.mode.startswith("I;16") or image.format == "PNG":
        return 0.0, 1 / 257
    extremes: list[float] = []
    for top, bottom in split_bands(*image.size):
        values = _finite(np.asarray(_cut_rows(image, top, bottom)))
        extremes += [float(values.min()), float(values.max())]
    low, high = min(extremes), max(extremes)
    for white in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
        if low >= 0 and high <= white:
            return 0.0, 255 / white
    return low, 255 / max(high - low, 1e-6)


def _clear_key(image: Image, clear: NDArray[np.bool_]) -> Image:
    """RGBA with what is clear ([H, W] or [H, W, channels], all of which have to be) transparent, the rest opaque."""
    from PIL import Image

    all_clear = clear.reshape(image.height, image.width, -1).all(-1)
    opaque = image.convert("RGB")
    opaque.putalpha(Image.fromarray(np.where(all_clear, np.uint8(0), np.uint8(255))))
    return opaque


def alpha_of(image: Image) -> Image | None:
    """The alpha of what ``to_8bit`` gave; None where it has none."""
    return image.getchannel("A") if image.mode == "RGBA" else None


def to_rgb(image: Image, profile: bytes | None) -> Image:
    """An 8-bit picture's colours as sRGB, through its ICC profile where it has a usable one, whatever its alpha."""
    if image.mode == "RGBA":
        image = image.convert("RGB")
    if profile and image.mode in {"RGB", "CMYK"}:
        return _through_profile(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _through_profile(image: Image, profile: bytes) -> Image:
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image.convert("RGB")
        srgb = cast("Any", ImageCms.createProfile("sRGB"))  # pyright: ignore[reportUnknownMemberType]
        turned = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a damaged profile, or one of another kind of picture: common, harmless
        return image.convert("RGB")
    return turned if turned is not None else image.convert("RGB")


def _grey(values: NDArray[Any], levels: Levels) -> NDArray[np.uint8]:
    black, factor = levels
    return _round((_finite(values) - black) * factor)


def _finite(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _round(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    return (values + 0.5).clip(0, 255).astype(np.uint8)
