"""The small base in a running WebUI: the same seed gives the picture that diffusers makes.

The WebUI is AUTOMATIC1111 or Forge with ``dp-adapter demo-base install``, started with that checkpoint. DP_DEMO_FILES:
the folder of the same files and of the adapter (default: models/demo, where both are shipped).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp_adapter.generation import generate
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline
from dp_adapter.session import Session
from dp_adapter.settings import Settings
from dp_adapter.small_base.webui_files import NAME, SHIPPED
from tests.real.conftest import Picture, WebUI, largest

pytestmark = pytest.mark.real
FILES = Path(os.environ.get("DP_DEMO_FILES", SHIPPED))
JOB = DiffusersJob("color photo of a person, blue background", width=128, height=128, steps=20, guidance=5.0, seed=7)
SAME = 30  # dB; the WebUIs' DDIM leaves its last step out
SAMPLERS = {"ddim": "DDIM", "euler": "Euler", "dpmpp_2m_karras": "DPM++ 2M Karras"}


@pytest.fixture(scope="module")
def small(webui: WebUI) -> Pipeline:
    loaded = webui.get("/sdapi/v1/options")["sd_model_checkpoint"]
    if not str(loaded).startswith(NAME):
        pytest.skip(f"the WebUI's checkpoint is {loaded}, not {NAME}")
    return load_pipeline.load(FILES / f"{NAME}.safetensors", "cpu")


def request(job: DiffusersJob) -> dict[str, Any]:
    return {
        "prompt": job.prompt, "negative_prompt": job.negative_prompt, "width": job.width, "height": job.height,
        "steps": job.steps, "cfg_scale": job.guidance, "seed": job.seed, "sampler_name": SAMPLERS[job.sampler],
        "override_settings": {"randn_source": "CPU", "CLIP_stop_at_last_layers": 1},  # neo starts with 2
    }  # fmt: skip


def psnr(one: Picture, other: Picture) -> float:
    assert one.shape == other.shape
    return float(10 * np.log10(255**2 / max(np.square(one - other, dtype=np.float64).mean(), 1e-9)))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("identity", [False, True], ids=["base", "identity"])
def test_the_same_seed_gives_the_same_picture(
    webui: WebUI, small: Pipeline, person: dict[str, Any], portrait: Path, identity: bool, sampler: str
) -> None:
    job = replace(JOB, sampler=sampler)
    adapter = str(FILES / person["model"])
    here = {**person, "references": [{"image": str(portrait)}], "model": adapter, "enabled": identity}
    session = Session([SHIPPED.parent], paths_allowed=True)
    wanted = generate(session, small, Settings.from_dict(here), job).results[0].picture.astype(np.int16)
    made = webui.one(person if identity else None, **request(job))
    assert psnr(made, wanted) > SAME, f"{psnr(made, wanted):.1f} dB, largest difference {largest(made, wanted)}"
