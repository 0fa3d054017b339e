"""Real portraits for the tests of identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.pictures.picture_files import Picture, load_picture

ASSETS = Path(__file__).parents[3] / "shared" / "assets"


@pytest.fixture(scope="session")
def astronaut() -> Picture:
    data = pytest.importorskip("skimage.data", reason="scikit-image carries the portrait of this test")
    return np.asarray(data.astronaut(), np.uint8)


@pytest.fixture(scope="session")
def portraits() -> list[Picture]:
    """32 pictures: 16 people, two of each in a row."""
    files = sorted((ASSETS / "test_portraits").glob("*.jpg"))
    if not files:
        pytest.skip(f"needs the test portraits in {ASSETS}")
    return [load_picture(file) for file in files]


@pytest.fixture(scope="session")
def yunet() -> YuNet:
    return YuNet()
