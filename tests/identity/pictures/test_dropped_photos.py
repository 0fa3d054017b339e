"""Dropped photos in memory."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.dropped_photos import DroppedPhotos
from dp_adapter.identity.pictures.picture_files import Picture, digest, load_mask

RANDOM = np.random.default_rng(0)


def encoded(picture: Picture, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


def noise(width: int = 40) -> Picture:
    return RANDOM.integers(0, 256, (40, width, 3), np.uint8)


def test_the_content_is_the_name() -> None:
    shelf, picture = DroppedPhotos(2**20), noise()
    name = shelf.add(encoded(picture))
    assert name == digest(picture)[:16] and name in shelf and np.array_equal(shelf.get(name), picture)
    assert shelf.add(encoded(picture, "BMP")) == name, "the same picture in another format"
    assert shelf.add(encoded(picture[:, ::-1])) != name


def test_what_was_not_used_for_longest_goes_first() -> None:
    files = [encoded(noise()) for _ in range(3)]
    shelf = DroppedPhotos(sum(map(len, files)) - 1)
    first, second = shelf.add(files[0]), shelf.add(files[1])
    shelf.get(first)
    third = shelf.add(files[2])
    assert first in shelf and third in shelf and second not in shelf
    with pytest.raises(PictureError, match=r"The photo is not here any more\. Drop it again"):
        shelf.get(second)
    shelf.clear()
    assert first not in shelf and third not in shelf


def test_refusals() -> None:
    shelf = DroppedPhotos(3000)
    kept = shelf.add(encoded(np.zeros((40, 40, 3), np.uint8)))
    with pytest.raises(PictureError, match=r"more than the 0\.0 MiB"):
        shelf.add(encoded(noise()))
    for data, words in ((b"", "empty"), (b"no picture", "not a picture"), (encoded(noise(8)), "at least 32")):
        with pytest.raises(PictureError, match=words):
            shelf.add(data)
    assert kept in shelf, "what is refused pushes nothing out"


def test_masks_that_differ_in_alpha_only_are_kept_apart() -> None:
    shelf = DroppedPhotos(2**20)
    layers = [np.full((40, 40, 4), 255, np.uint8) for _ in range(2)]
    layers[0][:20, :, 3] = layers[1][20:, :, 3] = 0
    names = [shelf.add(encoded(layer)) for layer in layers]
    assert names[0] != names[1]
    for name, layer in zip(names, layers, strict=True):
        assert np.array_equal(shelf.read(name, load_mask), layer[..., 3])
        assert shelf.get(name).min() == 255, "as a photograph, white over white"


def test_a_mask_may_be_small() -> None:
    shelf = DroppedPhotos(2**20)
    name = shelf.add(encoded(np.full((8, 8), 255, np.uint8)), mask=True)
    assert shelf.read(name, load_mask).shape == (8, 8)
