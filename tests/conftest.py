"""What many tests share: one thread, a real portrait, and the tiny base with its adapter, built once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.tiny_base import tiny_pipeline

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # some tests load onnxruntime by themselves
ASSETS = Path(__file__).parents[2] / "shared" / "assets"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Networks this small are faster without threads, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph with one face, 512 x 512: scikit-image's astronaut, public domain."""
    from PIL import Image

    data = pytest.importorskip("skimage.data", reason="scikit-image carries the portrait of this test")
    path = tmp_path_factory.mktemp("photos") / "secret-portrait-name.png"
    Image.fromarray(np.asarray(data.astronaut(), np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def faceless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture without a face."""
    from PIL import Image

    path = tmp_path_factory.mktemp("photos") / "faceless.png"
    ramp = np.linspace(0, 255, 96 * 96 * 3).reshape(96, 96, 3).astype(np.uint8)
    Image.fromarray(ramp).save(path)
    return path


@pytest.fixture(scope="session")
def people() -> list[Path]:
    """16 people, two photographs of each in a row."""
    files = sorted((ASSETS / "test_portraits").glob("*.jpg"))
    if not files:
        pytest.skip(f"needs the test portraits in {ASSETS}")
    return files


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's untrained base as a diffusers folder."""
    return tiny_pipeline.build(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def adapter_file(tiny_folder: Path) -> Path:
    """An untrained adapter for the tiny base, taking SFace vectors."""
    return tiny_pipeline.identity_adapter(tiny_folder.parent / "untrained.safetensors", tiny_folder)


@pytest.fixture
def models(adapter_file: Path, tmp_path: Path) -> Path:
    """A models folder with that adapter as the only one."""
    folder = tmp_path / "models" / "dp_adapter"
    folder.mkdir(parents=True)
    (folder / adapter_file.name).hardlink_to(adapter_file)
    return folder.parent
