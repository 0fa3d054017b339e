"""The edit modes in a running WebUI, over the API."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.real.conftest import WebUI, encoded, largest

MODES: list[dict[str, Any]] = [
    {"mode": "full_body", "face_pass": {"use": "off"}},
    {"mode": "age", "target_age": 70, "reference_age": 40},
    {"mode": "old_photo"},
    {"mode": "expression", "expression": "laughing"},
    {"mode": "expression", "expression": "sad", "free_parts": True, "regions": [{"kind": "full"}]},
]


def info_of(webui: WebUI, adapter: dict[str, Any], **request: Any) -> tuple[dict[str, Any], str]:
    answer = webui.answer(adapter, **request)
    assert answer.status_code == 200, answer.text[:1000]
    info = json.loads(answer.json()["info"])
    return info, info["infotexts"][0]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode['mode']} {mode.get('expression', '')}")
def test_a_mode_acts_and_says_what_it_did(webui: WebUI, person: dict[str, Any], mode: dict[str, Any]) -> None:
    info, text = info_of(webui, {**person, **mode})
    assert info["all_prompts"][0] != "a person in a garden" and "DP-Adapter result words" in text
    assert f"DP-Adapter mode: {mode['mode']}" in text
    listed = {one["name"]: one for one in webui.get("/dp_adapter/v1/modes")["modes"]}
    assert mode["mode"] in listed
    silent, _ = info_of(webui, {**person, **mode, "mode_words": False})
    assert silent["all_prompts"][0] == "a person in a garden"


def test_words_are_not_added_twice(webui: WebUI, person: dict[str, Any]) -> None:
    adapter = {**person, "mode": "expression", "expression": "laughing"}
    first, _ = info_of(webui, adapter)
    again, _ = info_of(webui, adapter, prompt=first["all_prompts"][0], negative_prompt=first["all_negative_prompts"][0])
    assert again["all_prompts"] == first["all_prompts"]
    assert again["all_negative_prompts"] == first["all_negative_prompts"]


def test_a_missing_age_is_asked_for(webui: WebUI, person: dict[str, Any]) -> None:
    answer = webui.answer({**person, "mode": "age", "target_age": 70})
    assert answer.status_code == 422 and "reference_age" in answer.text
    unknown = webui.answer({**person, "mode": "custom:no such mode"})
    assert unknown.status_code == 422 and "no such mode" in unknown.text
    assert webui.answer(person).status_code == 200, "the next job works"


def test_inpainting_a_person(webui: WebUI, person: dict[str, Any]) -> None:
    side = webui.size
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (side, side, 3)).astype(np.uint8)
    mask = np.zeros((side, side, 3), np.uint8)
    mask[:, side // 2 :] = 255
    request: dict[str, Any] = {
        "kind": "img2img",
        "init_images": [encoded(picture)],
        "mask": encoded(mask),
        "inpainting_fill": 1,
        "inpaint_full_res": False,
        "mask_blur": 0,
        "denoising_strength": 0.9,
        "steps": 4,
    }
    adapter = {**person, "mode": "inpaint", "regions": []}
    on, off = (webui.one(one, **request) for one in (adapter, None))
    assert largest(on[:, side // 2 :], off[:, side // 2 :]) > 0
    assert largest(on[:, : side // 2 - 8], off[:, : side // 2 - 8]) <= 1
