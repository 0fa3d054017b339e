"""Bit depths, palettes, inks and transparency brought to 8-bit RGB."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image


def array_to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8, uint16, bool or float-in-0..1 values as uint8 of the same shape.

    Raises:
        PictureError: another type, or floats outside 0..1, whose white is unknown.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return _round(array / np.float32(257))
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if low >= -1e-3 and high <= 1 + 1e-3:  # NaN compares false
            return _round(array * np.float32(255))
        raise PictureError(f"A float array with values {low:g} to {high:g} is not a picture", "Scale it to 0..1.")
    raise PictureError(f"An array of type {array.dtype} is not a picture", "Give uint8, uint16, bool or float.")


def to_8bit(image: Image) -> Image:
    """The same picture in mode L, LA, RGB, RGBA or CMYK, all of which can be resized by area."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_grey(np.asarray(image), sixteen=image.mode.startswith("I;16") or image.format == "PNG"))
    if "transparency" in image.info and image.mode in {"P", "L", "RGB", "1"}:
        return image.convert("RGBA")
    kept = {
        "1": "L",
        "L": "L",
        "LA": "RGBA",
        "La": "RGBA",
        "PA": "RGBA",
        "RGBa": "RGBA",
        "RGBA": "RGBA",
        "CMYK": "CMYK",
    }
    mode = kept.get(image.mode, "RGB")
    return image if image.mode == mode else image.convert(mode)


def to_rgb(image: Image, profile: bytes | None) -> Image:
    """An 8-bit picture as sRGB, through its ICC profile where it has a usable one, alpha over white."""
    from PIL import Image

    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        image = white
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


def _grey(values: NDArray[Any], sixteen: bool) -> NDArray[np.uint8]:
    """Deep greyscale as uint8: 16-bit by its full range, 32-bit by the smallest usual range that holds its values.

    32-bit files state no white: 0..1 (float), 0..255 and 0..65535 are taken at face value, all else is stretched.
    """
    whites = (1.0, 255.0, 65535.0) if np.issubdtype(values.dtype, np.floating) else (255.0, 65535.0)
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if sixteen:
        return _round(values / 257)
    low, high = float(values.min()), float(values.max())
    for white in whites:
        if low >= 0 and high <= white:
            return _round(values * (255 / white))
    return _round((values - low) * (255 / max(high - low, 1e-6)))


def _round(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    return (values + 0.5).clip(0, 255).astype(np.uint8)
