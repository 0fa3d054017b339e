"""Any picture file a user has: as a photograph, 8-bit RGB, or as a mask, 8-bit grey.

Pillow's own guard against decompression bombs is process-wide and belongs to the host; here the
number of pixels is taken from the header and held against a limit of the call.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.bit_depth import alpha_of, array_rows, image_rows, key_in_8bit, to_rgb
from dp_adapter.identity.pictures.reduce_picture import bytes_to_decode, reduce_by_area, split_bands

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = NDArray[np.uint8]
Coverage: TypeAlias = NDArray[np.uint8]
PictureSource: TypeAlias = "str | Path | bytes | Image | NDArray[Any]"

# Formats that run no other program (EPS starts Ghostscript) and hold one photograph, of the size that the header says
# (icons hold a PNG of any).
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "GIF", "JPEG2000", "TGA", "PPM", "PCX")
ORIENTATION = 0x0112
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation to PIL.Image.Transpose
BAD_DATA = (OSError, SyntaxError, ValueError, IndexError, TypeError, KeyError, EOFError, struct.error)


@dataclass(frozen=True)
class PictureLimits:
    """What is accepted: file size and what decoding takes in bytes, pixels in the header, sides in px.

    A long side over `long_side` is reduced to it; a side under `min_side` is refused.
    """

    file_bytes: int = 64 * 2**20
    pixels: int = 200_000_000
    memory: int = 376 * 2**20
    long_side: int = 4096
    min_side: int = 32


MASK_LIMITS = PictureLimits(min_side=1)  # nobody looks for a face in a mask


@dataclass(frozen=True, eq=False)
class DecodedPicture:
    """A picture file as it is, which photographs and masks read differently.

    Attributes:
        colours: RGB [H, W, 3], also under what is transparent.
        alpha: [H, W]; None where all is opaque.
    """

    colours: Picture
    alpha: Coverage | None

    @property
    def picture(self) -> Picture:
        """As a photograph: over white."""
        if self.alpha is None:
            return self.colours
        made = np.empty_like(self.colours)
        for rows in _bands(self.alpha):
            share = self.alpha[rows, :, None].astype(np.uint32)
            made[rows] = (self.colours[rows] * share + 255 * (255 - share) + 127) // 255
        return made

    @property
    def mask(self) -> Coverage:
        """As a mask: luminance (ITU-R BT.601, as the WebUIs') times alpha, [H, W]."""
        from PIL import Image

        made = np.empty(self.colours.shape[:2], np.uint8)
        for rows in _bands(made):
            luminance = np.asarray(Image.fromarray(self.colours[rows]).convert("L"))
            made[rows] = luminance
            if self.alpha is not None:
                made[rows] = (luminance.astype(np.uint32) * self.alpha[rows] + 127) // 255
        return made

    @property
    def digest(self) -> str:
        """Tells apart what differs as a photograph or as a mask; of an opaque picture, ``digest(picture)``."""
        return digest(self.picture if self.alpha is None else np.dstack([self.picture, self.mask]))


def load(source: PictureSource, limits: PictureLimits | None = None) -> DecodedPicture:
    """Read a picture, upright, first frame of an animation.

    Args:
        source: a path, a file's bytes, a PIL image, or an array [H, W], [H, W, 1|3|4] of uint8,
            uint16, bool or float in 0..1. Addresses are never fetched.
        limits: `PictureLimits()` when None.

    Raises:
        PictureError: naming the file: not there, not a picture, damaged, too small or too large.
    """
    limits = limits or PictureLimits()
    name = _name(source)
    try:
        if isinstance(source, np.ndarray):
            return _read_array(source, name, limits)
        if isinstance(source, (str, Path, bytes)):
            data = source if isinstance(source, bytes) else _read_file(source, name, limits)
            return _decode(_open(data, name, limits), name, limits, len(data))
        _check_size(source.size, name, limits)
        _check_memory(source, source.size, name, limits, 0)
        return _decode(source.copy(), name, limits)
    except MemoryError as error:
        raise PictureError(f"There is not enough memory to read {name}", "Give a smaller picture.") from error
    except _damage() as error:
        raise PictureError(f"{name} is damaged or cut short: {error}", "Save or download the picture again.") from error


def load_picture(source: PictureSource, limits: PictureLimits | None = None) -> Picture:
    """A photograph as uint8 RGB [H, W, 3], alpha over white; else as ``load``."""
    return load(source, limits).picture


def load_mask(source: PictureSource) -> Coverage:
    """How far each pixel belongs to a mask, uint8 [H, W]: luminance times alpha; else as ``load``, of any size."""
    return load(source, MASK_LIMITS).mask


def digest(picture: Picture) -> str:
    """SHA-256 of shape and content, as hex; the key of caches by content."""
    sha = hashlib.sha256(repr(picture.shape).encode())
    sha.update(np.ascontiguousarray(picture).data)  # without a copy of a large one
    return sha.hexdigest()


def _damage() -> tuple[type[Exception], ...]:
    from PIL import Image

    return (*BAD_DATA, Image.DecompressionBombError, Image.DecompressionBombWarning)


def _name(source: PictureSource) -> str:
    if isinstance(source, np.ndarray):
        return "the given array"
    if isinstance(source, (str, Path)):
        return str(source)
    return "the given data" if isinstance(source, bytes) else "the given picture"


def _bands(layer: NDArray[Any]) -> Iterator[slice]:
    """Rows of [H, W], a band at a time, for sums that take more than a byte a pixel."""
    height, width = layer.shape
    return (slice(top, bottom) for top, bottom in split_bands(width, height))


def _read_file(source: str | Path, name: str, limits: PictureLimits) -> bytes:
    if isinstance(source, str) and source.lower().startswith(("http://", "https://", "data:", "ftp://")):
        raise PictureError(
            f"'{source[:80]}' is an address, not a file; pictures are never fetched",
            "Save the picture and give the file.",
        )
    try:
        # looked at when open: what a name stands for may change, and a pipe would keep its reader waiting
        with open(source, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PictureError(f"'{name}' is no file but a device or a pipe", "Give a picture file.")
            _check_bytes(status.st_size, name, limits)
            return file.read(limits.file_bytes + 1)
    except FileNotFoundError as error:
        raise PictureError(f"There is no file '{name}'", "Check the path.") from error
    except (OSError, ValueError) as error:
        raise PictureError(
            f"The file '{name}' cannot be read: {error}", "Check the path and its permissions."
        ) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_bytes(size: int, name: str, limits: PictureLimits) -> None:
    if size > limits.file_bytes:
        raise PictureError(
            f"{name} has {size / 2**20:.0f} MiB; the limit is {limits.file_bytes / 2**20:.0f} MiB",
            "Save it smaller or as JPEG.",
        )
    if size == 0:
        raise PictureError(f"{name} is empty", "Save or download the picture again.")


def _check_size(size: tuple[int, int], name: str, limits: PictureLimits) -> None:
    width, height = size
    if width * height > limits.pixels:
        raise PictureError(
            f"{name} has {width} x {height} px, over the limit of {limits.pixels // 10**6} megapixels",
            "Give a smaller picture.",
        )
    reduced = min(1.0, limits.long_side / max(width, height, 1))
    if min(width, height) * reduced < limits.min_side:
        raise PictureError(
            f"{name} has {width} x {height} px; at least {limits.min_side} px a side are needed to find a face",
            "Give a larger picture.",
        )


def _open(data: bytes, name: str, limits: PictureLimits) -> Image:
    """The opened, not yet decoded image.

    The plugins are called directly: `Image.open` would first hold the size against the host's process-wide limit.
    """
    from PIL import Image

    _check_bytes(len(data), name, limits)
    Image.init()
    for kind in FORMATS:
        factory, accept = Image.OPEN.get(kind, (None, None))
        try:
            if factory is None or (accept is not None and accept(data[:16]) is not True):
                continue
            image = factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # how plugins say "not mine", as in Image.open
        except _damage() as error:
            raise PictureError(f"{name} cannot be read: {error}", "Save or download the picture again.") from error
        _check_size(image.size, name, limits)
        return image
    raise PictureError(
        f"{name} is not a picture that can be read", "Give a JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF file."
    )


def _read_array(array: NDArray[Any], name: str, limits: PictureLimits) -> DecodedPicture:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {3, 4})) or 0 in array.shape:
        raise PictureError(
            f"An array of shape {list(array.shape)} is not a picture", "Give [H, W], [H, W, 3] or [H, W, 4]."
        )
    size = array.shape[1], array.shape[0]
    _check_size(size, name, limits)
    return _split_layers(reduce_by_area(array_rows(array), size, _target(size, limits), lambda: None))


def _decode(image: Image, name: str, limits: PictureLimits, held: int = 0) -> DecodedPicture:
    full = image.size
    image.draft(None, _target(image.size, limits))  # JPEG: decodes at 1/2, 1/4 or 1/8 where that is large enough
    _check_memory(image, full, name, limits, held)
    key = key_in_8bit(image)  # before load, which forgets the depth that the file has
    image.load()
    _check_memory(image, full, name, limits, held)  # some learn their mode only now
    profile = cast("bytes | None", image.info.get("icc_profile"))
    # after load: plugins that turn by themselves then drop the tag, but for Pillow 9's TIFF, which keeps it
    turn = None if image.format == "TIFF" else TURNS.get(image.getexif().get(ORIENTATION, 1))
    reduced = reduce_by_area(image_rows(image, key), image.size, _target(image.size, limits), image.close)
    return _split_layers(reduced, profile, turn)


def _check_memory(image: Image, full: tuple[int, int], name: str, limits: PictureLimits, held: int) -> None:
    width, height = full
    needed = held + bytes_to_decode(image, full, _target(full, limits)[0])
    if needed > limits.memory:
        raise PictureError(
            f"{name} takes {needed / 2**20:.0f} MiB to decode, with {width} x {height} px; the limit is "
            f"{limits.memory / 2**20:.0f} MiB",
            "Make it smaller, or save it as a plain JPEG, which is reduced while it is read.",
        )


def _split_layers(image: Image, profile: bytes | None = None, turn: int | None = None) -> DecodedPicture:
    """An image of 8 bits, upright and in sRGB."""
    colours, alpha = (_turn(layer, turn) for layer in (to_rgb(image, profile), alpha_of(image)))
    assert colours is not None
    return DecodedPicture(colours, None if alpha is None or alpha.min() == 255 else alpha)


def _turn(layer: Image | None, turn: int | None) -> Picture | None:
    from PIL import Image

    if layer is None:
        return None
    return np.array(layer if turn is None else layer.transpose(Image.Transpose(turn)))


def _target(size: tuple[int, int], limits: PictureLimits) -> tuple[int, int]:
    scale = min(1.0, limits.long_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
