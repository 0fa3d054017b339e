"""One session on the tiny adapter, and the request most tests vary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dp_adapter.session import Scene, Session
from dp_adapter.settings import Settings
from tests import tiny
from tests.identity.encoders.test_encoder_pool import save_tower

Request = Callable[..., Settings]
SCENE = Scene("sd15", 128, 128)


@pytest.fixture
def session(models: Path) -> Session:
    return Session([models], paths_allowed=True)


@pytest.fixture(scope="session")
def portrait_session(adapter_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """As ``session``, kept for tests that leave its files alone: its networks are loaded once."""
    root = tmp_path_factory.mktemp("shared")
    (root / "dp_adapter").mkdir()
    (root / "dp_adapter" / adapter_file.name).hardlink_to(adapter_file)
    return Session([root], paths_allowed=True)


@pytest.fixture
def root(models: Path) -> Path:
    """The models folder with a tiny CLIP tower, and no adapter but those a test adds."""
    (models / "dp_adapter" / "untrained.safetensors").unlink()
    save_tower(models / "clip_vision" / "tower", tiny.CLIP, tiny.CLIP)
    return models


@pytest.fixture
def request_of(portrait: Path) -> Request:
    """Builds a request with the portrait, or with the photos given."""

    def build(*photos: Path | str | dict[str, Any], **fields: Any) -> Settings:
        references = [photo if isinstance(photo, dict) else {"image": str(photo)} for photo in photos or (portrait,)]
        return Settings.from_dict({"references": references, **fields})

    return build
