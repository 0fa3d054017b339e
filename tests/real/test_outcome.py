"""Report, best of N, drift and the face pass in a running WebUI: jobs inside jobs that leave no trace.

Faces are needed for some: a portrait that img2img leaves as it is, by a checkpoint called ``tiny_still`` (its UNet
predicts nothing) and TAESD in ``models/VAE-taesd``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp_adapter.session.results.best_of import STRIDE
from tests.real.conftest import HIRES, Made, WebUI, decoded, encoded, largest
from tests.real.test_shell import xyz

pytestmark = pytest.mark.real
RIGHT = {"kind": "box", "box": {"x0": 0.5}}
FACE_SIZE = 256


def told(infotext: str) -> dict[str, str]:
    """The measured values in an infotext, by name."""
    return dict(re.findall(r'DP-Adapter result ([\w ]+): ("[^"]*"|[^,]*)', infotext))


def seed_of(infotext: str) -> int:
    found = re.search(r"Seed: (\d+)", infotext)
    assert found is not None
    return int(found[1])


@pytest.fixture
def still(webui: WebUI, portrait: Path) -> dict[str, Any]:
    """A request for img2img that leaves the portrait as it is, but for what the identity does."""
    titles = [one["title"] for one in webui.get("/sdapi/v1/sd-models")]
    if not any("tiny_still" in title for title in titles):
        pytest.skip("the WebUI has no checkpoint 'tiny_still'")
    return {
        "init_images": [encoded(portrait)], "denoising_strength": 0.1, "width": 384, "height": 384, "steps": 10,
        "initial_noise_multiplier": 0.0, "sampler_name": "Euler",
        "override_settings": {
            "sd_model_checkpoint": "tiny_still.safetensors", "sd_vae_encode_method": "TAESD",
            "sd_vae_decode_method": "TAESD",
        },
    }  # fmt: skip


def test_every_picture_has_its_report(webui: WebUI, person: dict[str, Any]) -> None:
    many: dict[str, Any] = {"batch_size": 2, "n_iter": 2}
    plain = webui.make(person, **many)
    made = webui.make({**person, "report": {"enabled": True}}, **many)
    assert max(map(largest, plain.pictures[-4:], made.pictures[-4:])) == 0, "measuring changes nothing"
    for text in made.infotexts[-4:]:
        values = told(text)
        assert values["judge"] == '"SFace, which also guided the picture"'
        assert values["faces"].isdigit() and (values["faces"] != "0" or values["likeness"] == "no face")
    if len(made.infotexts) == 5:
        assert not told(made.infotexts[0]), "a grid is nobody's picture"
    assert not any(told(text) for text in plain.infotexts)


def test_best_of_keeps_a_picture_that_its_infotext_makes_again(webui: WebUI, person: dict[str, Any]) -> None:
    before = webui.one()
    made = webui.make({**person, "report": {"best_of": 3}}, n_iter=2)
    for picture, text in zip(made.pictures[-2:], made.infotexts[-2:], strict=True):
        assert told(text)["candidate"] in ("1 of 3", "2 of 3", "3 of 3") and "best of" not in text
        assert largest(picture, webui.one(person, seed=seed_of(text))) <= 3
    assert [seed_of(text) % STRIDE for text in made.infotexts[-2:]] == [7, 8]
    assert largest(before, webui.one()) == 0


def test_drift_disturbs_nothing(webui: WebUI, person: dict[str, Any]) -> None:
    """A second job inside each picture's; the next batch and the hires pass go on as if it had not been."""
    boxed = {**person, "regions": [RIGHT]}
    kinds: list[dict[str, Any]] = [{"n_iter": 2}, {"n_iter": 2, **HIRES}]
    for more in kinds:
        plain = webui.make(boxed, **more)
        made = webui.make({**boxed, "report": {"drift": True}}, **more)
        assert max(map(largest, plain.pictures[-2:], made.pictures[-2:])) == 0
        for text in made.infotexts[-2:]:
            assert float(told(text)["drift inside"]) > 0 and float(told(text)["drift outside"]) > 0
    idle = told(webui.make({**boxed, "weight": 0, "report": {"drift": True}}).infotexts[0])
    assert float(idle["drift inside"]) == float(idle["drift outside"]) == 0, "the same job, made twice"


def test_pictures_below_are_left_out(webui: WebUI, person: dict[str, Any]) -> None:
    answer = webui.answer({**person, "report": {"least": 1.0, "below": "skip"}}, n_iter=2, do_not_save_grid=True)
    assert answer.status_code == 200, answer.text[:500]
    data = answer.json()
    assert data["images"] == []
    info = json.loads(data["info"])
    assert info["extra_generation_params"]["DP-Adapter result left out"] == "2 of 2"
    kept = webui.make({**person, "report": {"least": 1.0}}, n_iter=2)
    assert len(kept.pictures) >= 2 and "least" not in kept.infotexts[-1]


def test_in_a_grid(webui: WebUI, person: dict[str, Any]) -> None:
    asked = {**person, "report": {"enabled": True, "best_of": 2}}
    grid = webui.make(asked, **xyz(webui, [("[DP-Adapter] Weight", "0, 1")]))
    texts = grid.infotexts[-2:]
    assert all(told(text)["candidate"].endswith("of 2") for text in texts)
    *_, first, second = grid.pictures
    assert largest(first, webui.one(seed=seed_of(texts[0]))) == 0
    assert largest(second, webui.one(person, seed=seed_of(texts[1]))) == 0


def test_a_face_is_judged_and_chosen(webui: WebUI, person: dict[str, Any], still: dict[str, Any]) -> None:
    asked = {**person, "weight": 0.0, "report": {"best_of": 3, "least": 0.3}}
    made = webui.make(asked, "img2img", **still)
    values = told(made.infotexts[0])
    assert values["faces"] == "1" and float(values["likeness"]) > 0.3 and "candidate" not in values
    searched = webui.make({**asked, "report": {"best_of": 2}}, "img2img", **still)
    assert told(searched.infotexts[0])["candidate"] in ("1 of 2", "2 of 2")
    assert seed_of(searched.infotexts[0]) in (7, 7 + STRIDE)


def test_the_face_pass(webui: WebUI, person: dict[str, Any], still: dict[str, Any]) -> None:
    asked = {**person, "weight": 0.0}
    face_pass = {"use": "on", "size": FACE_SIZE, "strength": 0.3, "weight": 1.0}
    plain = webui.make(asked, "img2img", **still)
    made = webui.make({**asked, "face_pass": face_pass, "report": {"enabled": True}}, "img2img", **still)
    assert told(made.infotexts[0])["face pass"] == "1 of 1"
    change = np.abs(made.pictures[0] - plain.pictures[0]).max(-1)
    rows, columns = np.flatnonzero(change.max(1)), np.flatnonzero(change.max(0))
    assert change[75:112, 150:187].max() > 0, "the face is made anew"
    assert rows.max() < 200 and columns.min() > 60 and columns.max() < 275, "and nothing else"
    again = webui.make({**asked, "face_pass": face_pass}, "img2img", **still)
    assert largest(made.pictures[0], again.pictures[0]) == 0
    assert largest(plain.pictures[0], webui.one(asked, "img2img", **still)) == 0
    nothing = webui.make({**asked, "face_pass": {**face_pass, "weight": 0.0}}, "img2img", **still)
    assert largest(nothing.pictures[0], made.pictures[0]) > 0, "the identity acts in the pass"


def test_the_face_pass_in_a_batch_with_all_else(webui: WebUI, person: dict[str, Any], still: dict[str, Any]) -> None:
    asked = {
        **person, "weight": 0.0, "face_pass": {"use": "on", "size": FACE_SIZE},
        "report": {"best_of": 2, "drift": True, "masks": True},
    }  # fmt: skip
    made: Made = webui.make(asked, "img2img", **still, batch_size=2)
    for text in made.infotexts[-2:]:
        values = told(text)
        assert values["face pass"] == "1 of 1" and values["candidate"].endswith("of 2")
    assert largest(decoded(made.encoded[-1]), made.pictures[-1]) == 0
