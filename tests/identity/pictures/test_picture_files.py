from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.picture_files import PictureLimits, digest, load, load_mask, load_picture


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def gradient() -> Image.Image:
    """64 wide, 48 high: red grows to the right, green downward."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 4, y * 5, np.full_like(x, 90)], -1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "TGA", "PPM", "JPEG2000"])
def test_common_formats_give_the_same_picture(gradient: Image.Image, kind: str) -> None:
    options: dict[str, Any] = {"WEBP": {"quality": 95}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    picture = load_picture(encoded(gradient, kind, **options))
    assert picture.dtype == np.uint8 and picture.shape == (48, 64, 3)
    worst = np.abs(picture.astype(int) - np.asarray(gradient)).max()
    assert worst <= {"WEBP": 24, "JPEG": 12}.get(kind, 0)


def test_every_kind_of_source_is_the_same_picture(gradient: Image.Image, tmp_path: Path) -> None:
    file = tmp_path / "gradient.png"
    gradient.save(file)
    sources = [file, str(file), file.read_bytes(), gradient, np.asarray(gradient)]
    assert len({digest(load_picture(source)) for source in sources}) == 1


def test_digest_tells_content_and_shape_apart() -> None:
    flat = np.zeros((40, 60, 3), np.uint8)
    assert digest(flat) != digest(flat.reshape(60, 40, 3))
    assert digest(flat) != digest(flat + np.uint8(1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(gradient: Image.Image, orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a camera in that position applies
    stored = gradient if orientation == 1 else gradient.transpose(Image.Transpose(undo[orientation]))
    for kind in ("PNG", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert np.array_equal(load_picture(encoded(stored, kind, exif=exif)), np.asarray(gradient)), kind


def test_transparency_is_over_white() -> None:
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    half = Image.new("RGBA", (40, 40), (255, 0, 0, 128))
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    grey = Image.new("LA", (40, 40), (0, 0))
    assert load_picture(encoded(clear, "PNG")).min() == 255
    assert np.abs(load_picture(encoded(half, "PNG"))[0, 0].astype(int) - (255, 127, 127)).max() <= 1
    assert load_picture(encoded(palette, "PNG", transparency=1)).min() == 255
    assert load_picture(encoded(grey, "PNG")).min() == 255
    assert tuple(load_picture(encoded(palette, "PNG"))[0, 0]) == (200, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    values = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    picture = load_picture(encoded(Image.fromarray(values), kind))
    assert np.abs(picture[..., 0].astype(float) - values / 257).max() <= 0.51
    assert np.array_equal(picture[..., 0], load_picture(values)[..., 0])


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.linspace(0, 1, 1600, dtype=np.float32), 1.0),
        (np.linspace(0, 255, 1600, dtype=np.float32), 255.0),
        (np.linspace(0, 60000, 1600).astype(np.int32), 65535.0),
        (np.linspace(0, 2e9, 1600).astype(np.int32), 2e9),
    ],
)
def test_32_bit_greyscale_is_scaled(values: np.ndarray[Any, Any], white: float) -> None:
    picture = load_picture(encoded(Image.fromarray(values.reshape(40, 40)), "TIFF"))
    assert np.abs(picture[..., 1].astype(float).ravel() - values / white * 255).max() <= 0.51


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LAB", "HSV"])
def test_other_modes(gradient: Image.Image, mode: str) -> None:
    image = gradient if mode not in {"LAB"} else None
    if image is None:
        srgb: Any = ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(gradient, srgb, ImageCms.createProfile("LAB"), outputMode="LAB")
    else:
        image = image.convert(mode)
    assert image is not None
    picture = load_picture(image)
    expected = image.convert("RGB") if mode != "LAB" else gradient
    assert np.abs(picture.astype(int) - np.asarray(expected)).mean() < 3


def test_cmyk(gradient: Image.Image) -> None:
    plain = gradient.convert("CMYK")
    assert np.abs(load_picture(encoded(plain, "TIFF")).astype(int) - np.asarray(gradient)).max() <= 2
    broken = load_picture(encoded(plain, "TIFF", icc_profile=b"not a profile"))
    assert np.abs(broken.astype(int) - np.asarray(gradient)).max() <= 2


def test_rgb_profile_is_used(gradient: Image.Image) -> None:
    """sRGB's own profile with the primaries of red and green exchanged, under another name."""
    srgb: Any = ImageCms.createProfile("sRGB")
    profile = ImageCms.ImageCmsProfile(srgb).tobytes()
    profile = profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
    profile = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    picture = load_picture(encoded(gradient, "PNG", icc_profile=profile))
    assert np.abs(picture.astype(int) - np.asarray(gradient)[..., [1, 0, 2]]).max() <= 3


def cmyk_profile() -> bytes:
    """An ICC profile whose every ink but black is ignored: L = 100 (1 - K), a = b = 0 (ICC.1:2001, lut8Type)."""
    ramp = bytes(range(256))
    inks = np.indices((2, 2, 2, 2)).reshape(4, 16)  # c, m, y, k of the 16 nodes
    nodes = np.stack([255 * (1 - inks[3]), np.full(16, 128), np.full(16, 128)], 1).astype(np.uint8).tobytes()
    matrix = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1], ">i4") * 65536
    lut = b"mft1\0\0\0\0\x04\x03\x02\0" + matrix.astype(">i4").tobytes() + ramp * 4 + nodes + ramp * 3
    name = b"desc\0\0\0\0" + (5).to_bytes(4, "big") + b"inks\0" + bytes(79)
    start = 128 + 4 + 24
    table = (2).to_bytes(4, "big")
    for tag, offset, data in ((b"A2B0", start + len(name), lut), (b"desc", start, name)):
        table += tag + offset.to_bytes(4, "big") + len(data).to_bytes(4, "big")
    size = (start + len(name) + len(lut)).to_bytes(4, "big")
    header = size + b"lcms\x02\x10\0\0prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    white = np.array([0.9642, 1.0, 0.8249]) * 65536
    header += white.astype(">i4").tobytes() + bytes(48)
    return header + table + name + lut


def test_cmyk_profile_is_used() -> None:
    inks = Image.new("CMYK", (40, 40), (255, 255, 0, 0))
    assert load_picture(encoded(inks, "TIFF"))[0, 0].tolist() == [0, 0, 255]
    for kind in ("TIFF", "JPEG"):
        picture = load_picture(encoded(inks, kind, icc_profile=cmyk_profile()))
        assert picture.min() > 245, kind
    half = Image.new("CMYK", (40, 40), (0, 0, 0, 128))
    assert abs(int(load_picture(encoded(half, "TIFF", icc_profile=cmyk_profile()))[0, 0, 1]) - 119) <= 3  # L* 50


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        red, _, blue = (int(value) for value in load_picture(data)[20, 20])
        assert red > 200 and blue < 60


@pytest.mark.parametrize("side", [1, 31])
def test_tiny_pictures_are_refused(side: int, tmp_path: Path) -> None:
    file = tmp_path / "tiny.png"
    Image.new("RGB", (side, side)).save(file)
    with pytest.raises(PictureError, match=rf"tiny\.png has {side} x {side} px; at least 32"):
        load_picture(file)


def test_damaged_files_are_named(gradient: Image.Image, tmp_path: Path) -> None:
    whole = encoded(Image.effect_noise((200, 200), 90).convert("RGB"), "JPEG")
    cases = {
        "cut.jpg": (whole[: len(whole) // 2], "damaged or cut short"),
        "cut.png": (encoded(gradient, "PNG")[:80], "cut"),
        "empty.jpg": (b"", "is empty"),
        "text.png": (b"hello, this is no picture at all", "is not a picture"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", "is not a picture"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PictureError, match=words) as caught:
            load_picture(tmp_path / name)
        assert name in str(caught.value)


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="never fetched"):
        load_picture("https://example.org/face.jpg")
    with pytest.raises(PictureError, match="There is no file"):
        load_picture(tmp_path / "absent.png")
    with pytest.raises(PictureError, match="cannot be read"):
        load_picture(tmp_path)
    with pytest.raises(PictureError, match="cannot be read"):
        load_picture("a\0b.png")
    for array in (np.zeros((40,)), np.zeros((40, 40, 2)), np.full((40, 40), np.nan), np.zeros((40, 40), np.int64)):
        with pytest.raises(PictureError):
            load_picture(array)


def test_limits_come_from_the_header(gradient: Image.Image) -> None:
    before = Image.MAX_IMAGE_PIXELS
    header = bytearray(encoded(Image.new("L", (64, 64)), "BMP"))
    header[18:26] = (20000).to_bytes(4, "little") + (20000).to_bytes(4, "little")  # claims 400 megapixels
    start = time.perf_counter()
    with pytest.raises(PictureError, match="20000 x 20000 px, over the limit of 200 megapixels"):
        load_picture(bytes(header))
    assert time.perf_counter() - start < 0.2
    with pytest.raises(PictureError, match="the limit is 0 MiB"):
        load_picture(encoded(gradient, "BMP"), PictureLimits(file_bytes=100))
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_host_with_a_low_pillow_limit_does_not_matter(gradient: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(gradient, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert load_picture(data).shape == (48, 64, 3)


def test_a_hundred_megapixels() -> None:
    data = encoded(Image.new("L", (10000, 10000), 77), "JPEG", quality=50)
    start = time.perf_counter()
    picture = load_picture(data)
    assert picture.shape == (4096, 4096, 3) and abs(int(picture[2000, 2000, 0]) - 77) <= 2
    assert time.perf_counter() - start < 4


def test_large_pictures_are_reduced_by_area() -> None:
    checks = np.indices((300, 300)).sum(0) % 2 * 255
    picture = load_picture(np.stack([checks] * 3, -1).astype(np.uint8), PictureLimits(long_side=150))
    assert picture.shape == (150, 150, 3) and np.abs(picture.astype(int) - 127).max() <= 1


def test_a_given_image_is_left_as_it_was(gradient: Image.Image) -> None:
    image = Image.open(io.BytesIO(encoded(gradient.resize((640, 480)), "JPEG")))
    load_picture(image, PictureLimits(long_side=100))
    assert image.size == (640, 480)


STROKE = np.zeros((48, 64), np.uint8)
STROKE[8:24, 8:40] = 255


def layer(mode: str) -> Image.Image:
    """The stroke as alpha over white, in a mode of picture that can have alpha."""
    white = Image.new("RGB", (64, 48), "white")
    white.putalpha(Image.fromarray(STROKE))
    if mode == "La":
        return white.convert("LA").convert("La")
    if mode == "PA":  # Pillow 9.5 loses the alpha on the way there
        made = Image.new("RGB", (64, 48), "white").convert("PA")
        made.putalpha(Image.fromarray(STROKE))
        return made
    if mode == "P":
        return white.quantize(4, method=Image.Quantize.FASTOCTREE)  # a palette that has alpha itself
    return white.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La", "P"])
def test_a_mask_is_luminance_times_alpha(mode: str) -> None:
    assert np.array_equal(load_mask(layer(mode)), STROKE)
    assert load_picture(layer(mode)).min() == 255, "as a photograph it is white over white"


@pytest.mark.parametrize(("mode", "hole"), [("L", 128), ("RGB", (128, 0, 200)), ("1", 0), ("I;16", 30000)])
def test_a_transparent_value_is_no_part_of_a_mask(mode: str, hole: Any) -> None:
    """White with a hole of the value that tRNS names, which would count half, or by its luminance, without."""
    if mode == "I;16":
        image = Image.fromarray(np.where(STROKE > 0, 65535, hole).astype(np.uint16))
    else:
        image = Image.new(mode, (64, 48), hole)
        image.paste((255, 255, 255) if mode == "RGB" else 255, (8, 8, 40, 24))
    try:
        with_hole = encoded(image, "PNG", transparency=hole)
    except OSError as error:  # Pillow 9.5 reads such a file and writes none
        pytest.skip(str(error))
    assert np.array_equal(load_mask(with_hole), STROKE)
    assert (load_mask(encoded(image, "PNG"))[0, 0] > 0) == (mode != "1")


def png(depth: int, kind: int, rows: list[bytes], width: int, **chunks: bytes) -> bytes:
    """A PNG of a depth that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    further = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + further + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_transparent_value_is_in_the_depth_of_the_file() -> None:
    """A PNG's tRNS counts in the file's bits; pixels are decoded to 8."""
    two = png(2, 0, [bytes([0b11_11_10_10] * 8)] * 32, 32, tRNS=struct.pack(">H", 2))
    assert np.array_equal(load_mask(two), np.tile(np.array([255, 255, 0, 0]), (32, 8)))
    white, key = b"\xff" * 6, struct.pack(">HHH", 0x8012, 0x4034, 0x2056)
    deep = png(16, 2, [(white + key) * 16] * 32, 32, tRNS=key)
    assert np.array_equal(load_mask(deep), np.tile(np.array([255, 0]), (32, 16)))


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 128])])
def test_a_palette_says_which_colours_are_transparent(transparency: Any) -> None:
    image = Image.new("P", (64, 48), 0)
    image.putpalette([255, 255, 255] * 3)
    image.paste(1, (8, 8, 40, 24))
    image.paste(2, (50, 30, 60, 40))
    mask = load_mask(encoded(image, "PNG", transparency=transparency))
    assert (mask[8:24, 8:40] == 255).all() and mask[0, 0] == 0
    assert mask[35, 55] == (128 if isinstance(transparency, bytes) else 255)


def test_masks_of_other_depths_and_inks() -> None:
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    assert np.abs(load_mask(encoded(Image.fromarray(ramp), "PNG")) - ramp / 257).max() <= 0.51
    assert np.array_equal(load_mask(Image.fromarray(STROKE / np.float32(255))), STROKE)
    assert np.array_equal(load_mask(Image.fromarray(STROKE).convert("RGB").convert("CMYK")), STROKE)
    assert np.array_equal(load_mask(STROKE > 0), STROKE)
    assert load_mask(Image.new("RGB", (40, 40), (255, 0, 0)))[0, 0] == 76, "luminance, as the WebUIs have it"
    assert load_mask(Image.new("RGBA", (8, 4), (128, 128, 128, 128))).tolist() == [[64] * 8] * 4, "small ones, too"


def test_a_mask_is_turned_upright_and_reduced_with_its_alpha() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = layer("RGBA").transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(load_mask(encoded(turned, "PNG", exif=exif)), STROKE)
    half = load(encoded(layer("RGBA"), "PNG"), PictureLimits(long_side=32, min_side=1))
    assert np.array_equal(half.mask, STROKE[::2, ::2])


def test_what_differs_in_alpha_only_has_names_of_its_own() -> None:
    other = Image.new("RGBA", (64, 48), (255, 255, 255, 0))
    assert load(layer("RGBA")).digest != load(other).digest
    assert np.array_equal(load(layer("RGBA")).picture, load(other).picture)
    opaque = Image.new("RGBA", (64, 48), (10, 20, 30, 255))
    assert load(opaque).digest == digest(load_picture(opaque.convert("RGB"))), "no alpha to tell apart"
