"""A page with the panel in a real browser; an adapter for the tiny UNet, and a request with a photo."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.projection import FaceProjection
from dp_adapter.weights.families import own_adapter
from tests import tiny
from tests.webui import gradios


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the panel")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("needs Chromium (apt install chromium)")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def panel_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of both bases, one whose keys cannot tell what it is, and a file that is none."""
    root = tmp_path_factory.mktemp("webui") / "models"
    folder = root / "dp_adapter"
    folder.mkdir(parents=True)
    tiny.write(folder / "one-faceid.safetensors", tiny.family_tensors("faceid"), "safetensors")
    tiny.write(folder / "two-plus.safetensors", tiny.family_tensors("faceid-plus"), "safetensors")
    tiny.write(folder / "a-sdxl.bin", tiny.family_tensors("faceid", "sdxl"), "zip")
    (folder / "broken.safetensors").write_bytes(b"nothing")
    (folder / "modes").mkdir()
    (folder / "modes" / "noir.json").write_text('{"title": "Noir", "does": "It is dark.", "needs": ["target_age"]}')
    return root


@pytest.fixture(scope="session", params=[3, 4])
def panel_address(
    request: pytest.FixtureRequest, browser: Any, panel_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The fake host's page in one of the two gradios."""
    log = tmp_path_factory.mktemp("page") / "log.txt"
    with gradios.environment(request.param).served(panel_models, log) as address:
        yield address
    assert not _crashes(log.read_text(encoding="utf-8"))


def _crashes(log: str) -> list[str]:
    """The log's tracebacks, but not those of gradio about a page that was closed while it sent or waited."""
    traced = re.split(r"^Traceback .*\n", log, flags=re.MULTILINE)[1:]
    return [one for one in traced if not re.search(r"^starlette\.\w+\.\w*Disconnect", one, re.MULTILINE)]


@pytest.fixture(scope="session")
def adapter_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    sites = [SiteAdapter(tiny.CONTEXT, tiny.width_of("sd15", index)) for index in range(16)]
    path = tmp_path_factory.mktemp("adapter") / "tiny.safetensors"
    own_adapter.save(path, Adapter(FaceProjection(128, 128, 4, tiny.CONTEXT), sites), "sd15", "sface", {})
    return path


@pytest.fixture
def person(portrait: Path) -> dict[str, Any]:
    return {
        "references": [{"image": base64.b64encode(portrait.read_bytes()).decode()}],
        "regions": [{"kind": "box", "box": {"x0": 0.5}}],
        "weight": 1.0,
    }
