"""InstantID's IdentityNet through the WebUI's own ControlNet.

Needs an SDXL checkpoint, an InstantID adapter and an IdentityNet that fit it, and the pack antelopev2, where a user has
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.real.conftest import HIRES, TIMEOUT, Picture, WebUI, encoded, interrupt_and_compare, largest

pytestmark = pytest.mark.real
ROUNDING = 3
VISIBLE = 12
LEFT = {"kind": "box", "box": {"x1": 0.5}}
RIGHT = {"kind": "box", "box": {"x0": 0.5}}
NET = {"identity_net": {"use": "on", "weight": 1.0}}
NO_NET = {"identity_net": {"use": "off"}}
FAINT = {"weight": 0.001}  # of the adapter itself, which then shows nowhere


@pytest.fixture(scope="module")
def adapter(webui: WebUI) -> str:
    models = webui.get("/dp_adapter/v1/models")["models"]
    found = [one["name"] for one in models if "instant" in one["name"].lower() and "adapter" in one["name"].lower()]
    if not found:
        pytest.skip("the WebUI has no InstantID adapter")
    return str(found[0])


@pytest.fixture(scope="module")
def controls(webui: WebUI) -> tuple[str, ...] | None:
    """The ControlNet models; None where the WebUI has no ControlNet."""
    answer = requests.get(webui.url + "/controlnet/model_list", timeout=TIMEOUT)
    return tuple(answer.json()["model_list"]) if answer.ok else None


@pytest.fixture
def instantid(adapter: str, controls: tuple[str, ...] | None) -> str:
    """The InstantID adapter, where there is an IdentityNet for it."""
    if not any("instant" in name.lower() for name in controls or ()):
        pytest.skip("the WebUI has no ControlNet with an IdentityNet")
    return adapter


@pytest.fixture
def person(instantid: str, people: list[Path]) -> dict[str, Any]:
    return {
        "references": [{"image": encoded(people[0])}],
        "model": instantid,
        "variant": "instantid",
        "weight": 1.0,
        "regions": [{"kind": "full"}],
        "span": {"start": 0.0},
        **NET,
    }


def difference(one: Picture, other: Picture) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).mean())


def test_it_acts_and_leaves_nothing(webui: WebUI, person: dict[str, Any]) -> None:
    plain = webui.one()
    without = webui.one({**person, **NO_NET})
    made = webui.one(person)
    assert largest(plain, without) > ROUNDING
    assert largest(without, made) > VISIBLE
    assert largest(made, webui.one(person)) == 0
    assert largest(without, webui.one({**person, **NO_NET})) == 0
    assert largest(without, webui.one({**person, "identity_net": {"use": "auto", "weight": 0}})) == 0
    assert largest(plain, webui.one()) == 0


def test_without_a_controlnet(webui: WebUI, adapter: str, controls: tuple[str, ...] | None, people: list[Path]) -> None:
    if controls is not None:
        pytest.skip("the WebUI has a ControlNet")
    asked = {"references": [{"image": encoded(people[0])}], "model": adapter, "variant": "instantid"}
    assert largest(webui.one(asked), webui.one({**asked, **NO_NET})) == 0
    refused = webui.answer({**asked, **NET})
    assert refused.status_code == 422 and "no ControlNet is here that it can use" in refused.text


def test_found_by_itself_and_by_name(webui: WebUI, person: dict[str, Any]) -> None:
    made = webui.one(person)
    assert largest(made, webui.one({**person, "identity_net": {"weight": 1.0}})) == 0
    refused = webui.answer({**person, "identity_net": {"use": "on", "model": "no such net"}})
    assert refused.status_code == 422 and "no such net" in refused.text


def test_weight_and_end(webui: WebUI, person: dict[str, Any]) -> None:
    without, made = webui.one({**person, **NO_NET}), webui.one(person)
    little = webui.one({**person, "identity_net": {"use": "on", "weight": 0.02}})
    assert difference(without, little) < difference(without, made)
    early = webui.one({**person, "identity_net": {"use": "on", "weight": 1.0, "end": 0.3}}, steps=6)
    assert largest(early, webui.one(person, steps=6)) > ROUNDING
    assert largest(early, webui.one({**person, **NO_NET}, steps=6)) > ROUNDING


def test_the_place_of_the_keypoints_matters(webui: WebUI, person: dict[str, Any]) -> None:
    faint = {**person, **FAINT}
    sides = [webui.one({**faint, "regions": [side]}, steps=2) for side in (LEFT, RIGHT)]
    plain = webui.one(steps=2)
    assert largest(*sides) > VISIBLE
    half = webui.size // 2
    left, right = (np.abs(plain - made).mean(-1) for made in sides)
    # Each acts in its own half only; the UNet's other layers and the VAE spread it.
    assert left[:, :half].mean() / left[:, half:].mean() > right[:, :half].mean() / right[:, half:].mean()


def test_the_identity_reaches_it(webui: WebUI, person: dict[str, Any], people: list[Path]) -> None:
    """The first photo gives the keypoints; a second one changes only the tokens."""
    pictures = [encoded(people[0]), encoded(people[2]), encoded(people[4])]
    pairs = [
        {**person, **FAINT, "references": [{"image": pictures[0]}, {"image": second}], "combine": "average"}
        for second in pictures[1:]
    ]
    off = [webui.one({**pair, **NO_NET}) for pair in pairs]
    on = [webui.one(pair) for pair in pairs]
    assert largest(*off) <= ROUNDING
    assert difference(*on) > 2 * max(difference(*off), 0.1)


def test_several_persons(webui: WebUI, person: dict[str, Any], people: list[Path]) -> None:
    first, second = encoded(people[0]), encoded(people[4])
    both = {
        **person,
        "references": [{"image": first}, {"image": second, "identity": 1}],
        "regions": [LEFT, {**RIGHT, "identity": 1}],
    }
    swapped = {**both, "references": [{"image": second}, {"image": first, "identity": 1}]}
    made = webui.one(both)
    assert largest(made, webui.one({**both, **NO_NET})) > VISIBLE
    assert largest(made, webui.one(swapped)) > VISIBLE
    assert largest(made, webui.one(both)) == 0


def test_a_batch_is_its_pictures(webui: WebUI, person: dict[str, Any]) -> None:
    boxed = {**person, "regions": [RIGHT]}
    singles = [webui.one(boxed, seed=seed) for seed in (7, 8)]
    together = webui.make(boxed, do_not_save_grid=True, batch_size=2).pictures[-2:]  # a grid may come first
    assert max(map(largest, together, singles)) <= ROUNDING
    counted = webui.make(boxed, do_not_save_grid=True, n_iter=2).pictures[-2:]
    assert max(map(largest, counted, singles)) <= ROUNDING


def test_hires_pass(webui: WebUI, person: dict[str, Any]) -> None:
    boxed = {**person, "regions": [RIGHT]}
    made = webui.make(boxed, **HIRES)
    assert len(made.pictures) == 1 and made.pictures[0].shape[0] == int(webui.size * 1.5)
    assert largest(made.pictures[0], webui.one({**boxed, **NO_NET}, **HIRES)) > VISIBLE
    first_only = webui.one({**boxed, "hires": {"use": "off"}}, **HIRES)
    assert largest(made.pictures[0], first_only) > ROUNDING
    assert largest(made.pictures[0], webui.one(boxed, **HIRES)) == 0


def test_nothing_in_results_and_infotext(webui: WebUI, person: dict[str, Any]) -> None:
    made = webui.make(person)
    assert len(made.pictures) == 1
    assert "ControlNet" not in made.infotexts[0]


def test_beside_a_unit_of_the_users(
    webui: WebUI, person: dict[str, Any], people: list[Path], controls: tuple[str, ...]
) -> None:
    modules = webui.get("/controlnet/module_list")["module_list"]  # Forge has "None"
    others = [name for name in controls if "instant" not in name.lower() and "xl" in name.lower()]
    if not others:
        pytest.skip("the WebUI has no other ControlNet for SDXL")
    unit = {
        "enabled": True, "module": "none" if "none" in modules else "None", "image": encoded(people[6]),
        "model": others[0], "weight": 0.5,
    }  # fmt: skip
    units: dict[str, Any] = {"alwayson_scripts": {"ControlNet": {"args": [unit]}}}
    alone = webui.make(None, **units).pictures
    assert largest(alone[0], webui.one()) > ROUNDING, "the unit changes nothing"
    both = webui.make(person, **units).pictures
    assert len(both) == len(alone), "the keypoint picture is among the results"
    assert largest(both[0], webui.one({**person, **NO_NET}, **units)) > ROUNDING
    assert largest(both[0], webui.one(person)) > ROUNDING
    assert largest(alone[0], webui.one(None, **units)) == 0
    assert largest(both[0], webui.one(person, **units)) == 0


def test_img2img_at_the_faces_place(webui: WebUI, person: dict[str, Any], people: list[Path]) -> None:
    automatic = {**person, "regions": []}
    asked: dict[str, Any] = {
        "init_images": [encoded(people[0])], "denoising_strength": 0.8, "width": 128, "height": 128,
    }  # fmt: skip
    made = webui.make(automatic, "img2img", **asked).pictures
    assert len(made) == 1
    assert largest(made[0], webui.one({**automatic, **NO_NET}, "img2img", **asked)) > ROUNDING


def test_interrupt_leaves_nothing(webui: WebUI, person: dict[str, Any]) -> None:
    interrupt_and_compare(webui, person)


def test_a_failure_leaves_nothing(webui: WebUI, person: dict[str, Any], faceless: Path) -> None:
    plain = webui.one()
    refused = webui.answer({**person, "references": [{"image": encoded(faceless)}]})
    assert refused.status_code == 422
    wrong = [one["name"] for one in webui.get("/dp_adapter/v1/models")["models"]]
    other = next((name for name in wrong if name.startswith("test")), None)
    if other:  # an adapter is no ControlNet
        refused = webui.answer({**person, "identity_net": {"use": "on", "model": other}})
        assert refused.status_code >= 400, "a file that is no ControlNet is said before a picture is made"
    assert largest(plain, webui.one()) == 0
    assert largest(webui.one(person), webui.one(person)) == 0


@pytest.mark.parametrize("prompt", ["a person in a garden", "a person AND a garden :0.7", "a person, " * 60])
def test_rows_of_every_kind(webui: WebUI, person: dict[str, Any], prompt: str) -> None:
    """A1111 splits a step's rows by a setting, and by the lengths of the texts; Forge joins them as memory allows."""
    boxed = {**person, "regions": [RIGHT]}
    joined, split = (
        webui.make(
            boxed, prompt=prompt, batch_size=2, do_not_save_grid=True,
            override_settings={"batch_cond_uncond": together, "pad_cond_uncond": False},
        ).pictures[-2:]
        for together in (True, False)
    )  # fmt: skip
    assert max(map(largest, joined, split)) <= ROUNDING
    strict = {**boxed, "strict_text_region": True}
    assert largest(webui.one(strict, prompt=prompt), webui.one({**strict, **NO_NET}, prompt=prompt)) > ROUNDING


def test_before_the_identity_begins(webui: WebUI, person: dict[str, Any]) -> None:
    late = {**person, "span": {"start": 0.99}, "identity_net": {"use": "on", "weight": 1.0, "end": 0.5}}
    assert largest(webui.one(late), webui.one({**late, **NO_NET})) > ROUNDING
