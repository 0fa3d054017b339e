"""Pictures that are damaged, lie about themselves or are no pictures: each is read, or refused in words."""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.dropped_photos import DroppedPhotos
from dp_adapter.identity.pictures.picture_files import PictureLimits, load, load_mask, load_picture
from dp_adapter.identity.pictures.picture_sources import read_as
from tests.hostile.tries import TRIES, hostile

ROOT = Path(__file__).parents[2]
SMALL = PictureLimits(long_side=48, min_side=1)


def encode(kind: str, mode: str, **options: Any) -> bytes:
    image = Image.effect_noise((64, 56), 90).convert("RGB")
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    made = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else image
    stream = io.BytesIO()
    (made if mode == "I;16" else made.convert(mode)).save(stream, kind, **options)
    return stream.getvalue()


def _seeds() -> list[bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    modes = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "GIF": ("P",),
        "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"), "BMP": ("1", "L", "P", "RGB"),
        "WEBP": ("RGB", "RGBA"), "TGA": ("L", "RGB", "RGBA"), "PPM": ("1", "L", "RGB"), "PCX": ("P", "RGB"),
    }  # fmt: skip
    plain = [encode(kind, mode) for kind, several in modes.items() for mode in several]
    frames = [Image.new("P", (64, 56), shade) for shade in (3, 200)]
    return [
        *plain,
        encode("JPEG", "RGB", exif=turned, progressive=True),
        encode("PNG", "RGB", exif=turned, transparency=(1, 2, 3)),
        encode("PNG", "P", transparency=bytes(range(256))),
        encode("TIFF", "RGB", compression="tiff_lzw"),
        encode("GIF", "P", save_all=True, append_images=frames),
        encode("WEBP", "RGB", save_all=True, append_images=[frame.convert("RGB") for frame in frames]),
    ]


SEEDS = _seeds()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A picture file with some bytes changed, mostly near its beginning, or cut short."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        where = draw(st.integers(0, min(len(data), draw(st.sampled_from([64, 300, 10**6]))) - 1))
        data[where] = draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    if data.startswith(b"\x89PNG") and draw(st.booleans()):  # else hardly a changed header gets past its checksum
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def _through_every_door(data: bytes, folder: Path) -> list[Callable[[], Any]]:
    file, text = folder / "given", base64.b64encode(data).decode()
    file.write_bytes(data)
    return [
        lambda: load(data, SMALL),
        lambda: load_mask(data),
        lambda: load_picture(str(file)),
        lambda: read_as(f"data:image/png;base64,{text}", False, load_picture),
        lambda: read_as(text, False, load_picture),
        lambda: DroppedPhotos(2**20).add(data, mask=True),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@given(data=mutated())
@settings(hostile, max_examples=5 * TRIES)
def test_a_file_is_a_picture_or_refused(data: bytes, folder: Path) -> None:
    for door in _through_every_door(data, folder):
        try:
            door()
        except PictureError as error:
            assert len(str(error)) < 1000 and "\n" not in str(error).strip()


@hostile
@given(data=st.binary(max_size=20))
def test_a_few_bytes_are_no_picture(data: bytes, folder: Path) -> None:
    for door in _through_every_door(data, folder):
        with pytest.raises(PictureError):
            door()


@pytest.mark.parametrize("first", [b"\x0a", b"\x89", b"\xff", b"B", b"II", b"P", b"GIF", b"\0\0\x02", b"\0\0\x01"])
def test_pictures_of_one_to_three_bytes(first: bytes) -> None:
    with pytest.raises(PictureError, match="the given data"):
        load(first)


_TYPES = ("u1", "u2", "?", "f2", "f4", "f8", "i4", "i8", "c8", "O", "U3", "M8[s]")


@hostile
@given(
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 40, 4097, 10**5, 10**9]), max_size=4),
    st.sampled_from(_TYPES),
    st.sampled_from([0.5, float("nan"), -3.0]),
)
def test_an_array_is_a_picture_or_refused_before_it_is_copied(shape: list[int], kind: str, value: float) -> None:
    one = np.zeros((), kind)
    if kind.startswith("f"):
        one = np.full((), value, kind)
    try:
        array = np.broadcast_to(one, shape)
    except ValueError:
        return  # more than an array can say
    if array.size > 2**22 and array.size < 2**28:
        return  # a picture within the limits, which takes its time
    try:
        load(array, SMALL)
    except PictureError as error:
        assert "array" in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_plain_file_is_told_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for name in (pipe, "/dev/zero", "/dev/null", tmp_path):
        for read in (load_picture, load_mask):
            with pytest.raises(PictureError, match=r"no file but a device or a pipe|cannot be read"):
                read(name)


# the others take half a minute more
LONGER = ["array", "palette", "la", "progressive", "float", "webp"] if TRIES > 100 else []
KINDS = ["grey 16", "grey 16 beyond", "rgba", *LONGER]
_MEASURED = """
import io, resource, sys
import numpy as np
from PIL import Image, ImageCms
from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.picture_files import load
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
stream = io.BytesIO()
Image.new("RGBA", (64, 64)).save(stream, "PNG")
load(stream.getvalue()).digest
before, words = peak(), ""
try:
    if sys.argv[1] == "array":
        load(np.broadcast_to(np.array(0.5), (14000, 14000, 3)))
    else:
        load(sys.argv[1]).digest
except PictureError as error:
    words = str(error)
print(peak() - before, words)
"""


def _write_large(kind: str, file: Path) -> None:
    """Few bytes and many pixels, at the edge of what is taken and beyond it."""
    if kind == "grey 16 beyond":  # only its header counts
        header = b"IHDR" + struct.pack(">IIBBBBB", 14000, 14000, 16, 0, 0, 0, 0)
        file.write_bytes(
            b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"
        )
        return
    mode, side, form = {
        "grey 16": ("I;16", 7000, "PNG"), "rgba": ("RGBA", 4096, "PNG"),
        "palette": ("P", 13000, "PNG"), "la": ("LA", 8000, "PNG"), "progressive": ("RGB", 7000, "JPEG"),
        "float": ("F", 8000, "TIFF"), "webp": ("RGB", 4900, "WEBP"),
    }[kind]  # fmt: skip
    image = Image.new(mode, (side, side), {"I;16": 7, "P": 7, "F": 0.5, "RGBA": (9, 8, 7, 100)}.get(mode))
    options: dict[str, Any] = {
        "progressive": {"progressive": True}, "palette": {"transparency": 7}, "float": {"compression": "tiff_lzw"},
        "webp": {"method": 0},
    }.get(kind, {})  # fmt: skip
    image.save(file, form, **options)


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux counts")
@pytest.mark.parametrize("kind", KINDS)
def test_no_picture_takes_more_than_itself_and_500_mb(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "large"
    if kind != "array":
        _write_large(kind, file)
    command = [sys.executable, "-c", _MEASURED, "array" if kind == "array" else str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
    took, _, words = done.stdout.partition(" ")
    assert float(took) * 2**20 < 500e6 + (0 if kind == "array" else file.stat().st_size)
    assert ("takes" in words) == (kind == "grey 16 beyond"), words
