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
    assert info["all_prompts"][0] == "a person in a garden" == text.split("\n")[0], "pictures carry the user's prompt"
    assert f"DP-Adapter mode: {mode['mode']}" in text and "DP-Adapter result words" in text
    listed = {one["name"]: one for one in webui.get("/dp_adapter/v1/modes")["modes"]}
    assert mode["mode"] in listed
    _, silent = info_of(webui, {**person, **mode, "mode_words": False})
    assert "DP-Adapter result words" not in silent


def test_the_words_are_sampled(webui: WebUI, person: dict[str, Any]) -> None:
    """Words that act as they would if the user had written them."""
    adapter = {**person, "mode": "expression", "expression": "laughing"}
    by_mode, silent = (webui.one({**adapter, "mode_words": words}) for words in (True, False))
    prompt = "a person in a garden, laughing, open mouth, showing teeth, narrowed eyes"
    written = webui.one({**adapter, "mode_words": False}, prompt=prompt, negative_prompt="expressionless")
    assert largest(by_mode, written) == 0 < largest(by_mode, silent)


def test_at_weight_0_a_mode_changes_nothing(webui: WebUI, person: dict[str, Any]) -> None:
    assert largest(webui.one({**person, "mode": "full_body", "weight": 0}), webui.one(None)) == 0


@pytest.mark.parametrize("mode", ["portrait", "full_body", "age", "old_photo", "expression", "inpaint"])
def test_no_mode_refuses_with_its_defaults(webui: WebUI, person: dict[str, Any], mode: str) -> None:
    answer = webui.answer({**person, "mode": mode})
    assert answer.status_code == 200, answer.text[:1000]


def test_an_unknown_mode_is_refused(webui: WebUI, person: dict[str, Any]) -> None:
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
