"""Errors, infotext, X/Y/Z and routes in a running WebUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.real.conftest import WebUI, encoded, largest

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"references": []}, "there is no photo"),
        ({"wieght": 1}, "Did you mean 'weight'?"),
        ({"weight": "much"}, "is not a number"),
        ({"model": "nobody.safetensors"}, "There is no model"),
        ({"model": "../../secret.safetensors"}, "There is no model"),
        ({"references": [{"image": "https://example.org/face.png"}]}, "never fetched"),
        ({"references": [{"image": "/etc/passwd"}]}, "base64"),
        ({"references": [{"image": "identity:nobody"}]}, "nobody"),
        ({"span": {"start": 0.9, "end": 0.1}}, "after the end"),
        ({"mode": "age"}, ""),
    ],
)
def test_errors_speak(webui: WebUI, person: dict[str, Any], change: dict[str, Any], words: str) -> None:
    answer = webui.answer({**person, **change})
    assert answer.status_code == 422, answer.text[:300]
    detail = answer.json()["detail"]
    assert words in detail and "Traceback" not in answer.text


def test_a_faceless_photo_stops_or_not_as_asked(webui: WebUI, person: dict[str, Any], faceless: Path) -> None:
    plain = webui.one()
    empty = {**person, "references": [{"image": encoded(faceless)}]}
    answer = webui.answer(empty)
    assert answer.status_code == 422 and "No face was found" in answer.json()["detail"]
    assert largest(plain, webui.one({**empty, "no_face": "continue"})) == 0
    assert largest(plain, webui.one(person)) > 0


def test_the_request_as_text(webui: WebUI, person: dict[str, Any]) -> None:
    assert largest(webui.one(person), webui.one(json.dumps(person))) == 0
    url = "data:image/png;base64," + person["references"][0]["image"]
    assert largest(webui.one(person), webui.one({**person, "references": [{"image": url}]})) == 0


def test_infotext_makes_the_picture_again(webui: WebUI, person: dict[str, Any]) -> None:
    asked = {
        **person,
        "curve": "1@0, 0.3@1",
        "regions": [{"kind": "box", "box": {"x0": 0.25, "y1": 0.75}, "feather": 0.1}],
        "text_emphasis": 0.5,
        "levels": {"down": 0.5, "sites": {"3": 0.2}},
    }
    made = webui.make(asked)
    read = webui.post("/sdapi/v1/png-info", {"image": "data:image/png;base64," + made.encoded[0]}).json()
    assert "DP-Adapter weight: 1" in read["info"] and person["references"][0]["image"][:40] not in read["info"]
    assert made.infotexts[0] in read["info"] or read["info"] in made.infotexts[0]
    if webui.post("/sdapi/v1/txt2img", {"infotext": webui.make().infotexts[0]}).status_code == 500:
        pytest.skip("this host answers 500 to any infotext, ours or not")
    again = webui.post("/sdapi/v1/txt2img", {"infotext": read["info"]})
    assert again.status_code == 200, again.text[:500]
    assert "DP-Adapter" not in webui.make().infotexts[0]
    if "DP-Adapter" not in json.loads(again.json()["info"])["infotexts"][0]:
        pytest.skip("this host does not take script arguments from an infotext")
    from tests.real.conftest import decoded

    assert largest(made.pictures[0], decoded(again.json()["images"][0])) == 0


def xyz(webui: WebUI, axes: list[tuple[str, str]]) -> dict[str, Any]:
    """script_args of the X/Y/Z plot with these axes, by label."""
    plots = [one for one in webui.get("/sdapi/v1/script-info") if one["name"] == "x/y/z plot"]
    info = next(one for one in plots if not one["is_img2img"])
    labels = [arg["label"] for arg in info["args"]]
    choices = next(arg["choices"] for arg in info["args"] if arg["label"] == "X type")
    args: list[Any] = [arg.get("value") for arg in info["args"]]
    for letter, (name, values) in zip("XYZ", axes, strict=False):
        args[labels.index(f"{letter} type")] = choices.index(name)
        args[labels.index(f"{letter} values")] = values
    for letter in "XYZ"[len(axes) :]:
        args[labels.index(f"{letter} type")] = 0
    for index, label in enumerate(labels):
        if label == "Include Sub Images":
            args[index] = True
        if label == "Draw legend":  # some hosts' does not work with the Pillow of today
            args[index] = False
    return {"script_name": "x/y/z plot", "script_args": args}


def test_xyz_cells_do_not_leak(webui: WebUI, person: dict[str, Any]) -> None:
    grid = webui.make(person, **xyz(webui, [("[DP-Adapter] Weight", "0, 1, 0"), ("[DP-Adapter] End", "1")]))
    *_, first, second, third = grid.pictures
    plain, full = webui.one(), webui.one(person)
    assert largest(first, plain) == 0 and largest(third, plain) == 0
    assert largest(second, full) == 0


def test_xyz_refuses_before_the_grid_starts(webui: WebUI, person: dict[str, Any]) -> None:
    answer = webui.answer(person, **xyz(webui, [("[DP-Adapter] Weight", "0.5, 99")]))
    assert answer.status_code in (422, 500)
    assert "99" in answer.text and "maximum" in answer.text


def test_routes(webui: WebUI, person: dict[str, Any]) -> None:
    assert webui.get("/dp_adapter/v1/version")["version"]
    assert webui.get("/dp_adapter/v1/schema")["properties"]["weight"]
    assert person["model"] in [one["name"] for one in webui.get("/dp_adapter/v1/models")["models"]]
    paths = webui.get("/openapi.json")["paths"]
    assert "/dp_adapter/v1/faces" in paths


def test_a_saved_identity_makes_the_same_picture(webui: WebUI, person: dict[str, Any]) -> None:
    route = "/dp_adapter/v1/identities"
    request = {"name": "real test", "settings": {"references": person["references"]}, "replace": True}
    saved = webui.post(route, request)
    assert saved.status_code in (200, 201), saved.text[:300]
    by_name = {**person, "references": [{"image": "identity:real test"}]}
    assert largest(webui.one(person), webui.one(by_name)) == 0
    assert requests.delete(f"{webui.url}{route}/real test", timeout=60).status_code in (200, 204)
    assert webui.answer(by_name).status_code == 422
