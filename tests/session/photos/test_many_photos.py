"""Many large photos in one request are not held together."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.session import Session
from dp_adapter.session.photos import reference_photos
from tests.session.conftest import SCENE, Request

SIDE, PHOTOS, AT_HAND = 1400, 10, 8_000_000


@pytest.fixture
def large(portrait: Path, tmp_path: Path) -> list[Path]:
    """The portrait in 1400 x 1400 px, 5.9 MB when decoded, each a little different."""
    picture = np.asarray(cv2.resize(load_picture(portrait), (SIDE, SIDE)), np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(PHOTOS)]
    for number, path in enumerate(paths):
        picture[:8, :8] = number
        cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return paths


def test_photos_are_decoded_one_after_another(
    portrait_session: Session, request_of: Request, large: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portrait_session.photos, "_pictures", reference_photos.Cache(64, AT_HAND))
    portrait_session.prepare(request_of(), SCENE)  # networks are loaded

    def peak(photos: list[Path]) -> int:
        tracemalloc.start()
        try:
            prepared = portrait_session.prepare(request_of(*photos), SCENE)
            assert len(prepared.explanation.persons[0].photos) == len(photos)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(large[:3]), peak(large[3:])
    assert many < few + 3 * SIDE * SIDE, "four more photos would be four times that"
    assert len(portrait_session.photos._pictures) == 0, "nothing is kept between jobs"  # pyright: ignore[reportPrivateUsage]
