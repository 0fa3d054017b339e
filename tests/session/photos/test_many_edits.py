"""Photos that were edited are not held together, and are the same when they are edited again."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.session import Session
from dp_adapter.session.photos import reference_photos
from dp_adapter.session.photos.photo_edits import PhotoEdits
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.settings import Settings

SIDE = 512
COUNT = 6


@pytest.fixture
def files(portrait: Path, tmp_path: Path) -> list[Path]:
    """Photos that differ by a row."""
    pixels = load_picture(portrait)
    paths = [tmp_path / f"{number}.png" for number in range(COUNT)]
    for number, path in enumerate(paths):
        one = pixels.copy()
        one[-1] = number
        Image.fromarray(one).save(path)
    return paths


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, models: Path) -> Session:
    """A session that holds two photos of this size, beside the two that the edits hold."""
    monkeypatch.setattr(reference_photos, "_AT_HAND", 2 * SIDE * SIDE * 3)
    return Session([models], paths_allowed=True)


def held() -> int:
    """Whole photos in memory."""
    gc.collect()
    # arrays are no objects of the collector's; what holds them is
    found = {
        id(one)
        for holder in gc.get_objects()
        if not isinstance(holder, type)
        for one in gc.get_referents(holder)
        if isinstance(one, np.ndarray) and one.shape == (SIDE, SIDE, 3)
    }
    return len(found)


def look(session: Session, files: list[Path]) -> list[SeenPhoto]:
    settings = Settings.from_dict({"references": [{"image": str(path)} for path in files]})
    seen, _ = session.photos.look(settings, 0, session.encoders.yunet)
    return [one for one in seen if isinstance(one, SeenPhoto)]


def test_edited_photos_are_let_go_too(small: Session, files: list[Path]) -> None:
    before, runs = held(), list[int]()

    def darken(picture: Picture) -> Picture:
        runs.append(1)
        return picture // 2

    edits = PhotoEdits(lambda: {"dark": (darken, True)}, held=2 * SIDE * SIDE * 3)
    edited, notes = edits.apply(look(small, files), "off", "dark")
    assert held() - before == 4 and len(runs) == COUNT and all("restored by dark" in note for note in notes)
    for one, path in zip(edited, files, strict=True):
        assert isinstance(one, SeenPhoto) and np.array_equal(one.picture, load_picture(path) // 2)
    assert held() - before == 4
