"""A running WebUI at DP_WEBUI_URL, with --api, a small checkpoint and an adapter that fits it (make_adapter.py)."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.int16]
TIMEOUT = 900


@dataclass(frozen=True)
class Made:
    """One answer of the API."""

    pictures: list[Picture]
    infotexts: list[str]
    encoded: list[str]


@dataclass
class WebUI:
    """The WebUI's API, asked as a user's program would."""

    url: str
    size: int
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])

    def get(self, path: str) -> Any:
        answer = requests.get(self.url + path, timeout=TIMEOUT)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=TIMEOUT)

    def answer(self, adapter: Any = None, kind: str = "txt2img", **request: Any) -> requests.Response:
        """A generation; ``adapter`` is our script's one argument."""
        body: dict[str, Any] = {
            "prompt": "a person in a garden", "negative_prompt": "bad", "steps": 3, "seed": 7, "cfg_scale": 5,
            "width": self.size, "height": self.size, "sampler_name": "Euler a", **self.defaults, **request,
        }  # fmt: skip
        if adapter is not None:
            body["alwayson_scripts"] = {**body.get("alwayson_scripts", {}), "DP-Adapter": {"args": [adapter]}}
        return self.post(f"/sdapi/v1/{kind}", body)

    def make(self, adapter: Any = None, kind: str = "txt2img", **request: Any) -> Made:
        answer = self.answer(adapter, kind, **request)
        assert answer.status_code == 200, answer.text[:2000]
        data = answer.json()
        pictures = [decoded(text) for text in data["images"]]
        info = json.loads(data["info"])
        return Made(pictures, info["infotexts"], data["images"])

    def one(self, adapter: Any = None, kind: str = "txt2img", **request: Any) -> Picture:
        return self.make(adapter, kind, **request).pictures[0]


HIRES: dict[str, Any] = {
    "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7,
    "hr_second_pass_steps": 3, "hr_additional_modules": ["Use same choices"],
}  # fmt: skip


def decoded(text: str) -> Picture:
    picture = Image.open(io.BytesIO(base64.b64decode(text.split(",", 1)[-1]))).convert("RGB")
    return np.asarray(picture).astype(np.int16)


def encoded(picture: NDArray[Any] | Path) -> str:
    if isinstance(picture, Path):
        return base64.b64encode(picture.read_bytes()).decode()
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def largest(one: Picture, other: Picture) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def interrupt_and_compare(webui: WebUI, person: dict[str, Any]) -> None:
    """An interrupted job leaves the next one as it was."""
    plain = webui.one()
    job = threading.Thread(target=webui.answer, args=(person,), kwargs={"steps": 60})
    job.start()
    for _ in range(600):
        time.sleep(0.1)
        if webui.get("/sdapi/v1/progress?skip_current_image=true")["state"]["sampling_step"] > 2:
            break
    webui.post("/sdapi/v1/interrupt", {})
    job.join(300)
    assert not job.is_alive()
    assert largest(plain, webui.one()) == 0


@pytest.fixture(scope="session")
def webui() -> WebUI:
    url = os.environ.get("DP_WEBUI_URL", "")
    if not url:
        pytest.skip("DP_WEBUI_URL names no running WebUI")
    found = WebUI(url.rstrip("/"), int(os.environ.get("DP_WEBUI_SIZE", "64")))
    found.get("/sdapi/v1/options")
    return found


@pytest.fixture(scope="session")
def model(webui: WebUI) -> str:
    """An adapter that fits the loaded checkpoint."""
    wanted = os.environ.get("DP_WEBUI_MODEL")
    if wanted:
        return wanted
    fitting = [one["name"] for one in webui.get("/dp_adapter/v1/models")["models"] if one.get("fits")]
    if not fitting:
        pytest.skip("no adapter in the WebUI's folders fits its checkpoint; see tests/real/make_adapter.py")
    return fitting[0]


@pytest.fixture
def person(model: str, portrait: Path) -> dict[str, Any]:
    """The adapter's argument for one photo, acting everywhere and from the first step."""
    return {
        "references": [{"image": encoded(portrait)}],
        "model": model,
        "weight": 1.0,
        "regions": [{"kind": "full"}],
        "span": {"start": 0.0},
    }
