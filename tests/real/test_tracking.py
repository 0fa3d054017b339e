"""Regions that follow the face of the picture being made, in a running WebUI.

They need a face to follow: set DP_WEBUI_STILL where the checkpoint predicts no noise (so img2img keeps its picture) and
TAESD's encoder and decoder are in models/VAE-taesd, so that photographs go in and come out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.real.conftest import Picture, WebUI, encoded, largest

WIDTH, HEIGHT = 320, 256
FACE = {"left": (0.05, 0.45), "right": (0.55, 0.95)}  # of the width
still = pytest.mark.skipif(not os.environ.get("DP_WEBUI_STILL"), reason="needs DP_WEBUI_STILL, see the module")


@pytest.fixture(scope="module")
def head(people: list[Path]) -> Image.Image:
    with Image.open(people[0]) as opened:
        return opened.convert("RGB").resize((144, 180), Image.Resampling.LANCZOS)


def scene(head: Image.Image, *sides: str) -> NDArray[np.uint8]:
    made = Image.new("RGB", (WIDTH, HEIGHT), (96, 120, 110))
    for side in sides:
        made.paste(head, (8 if side == "left" else WIDTH - 152, 70))
    return np.asarray(made)


def asked(picture: NDArray[np.uint8], **request: Any) -> dict[str, Any]:
    """An img2img request that gives the picture back, but for what the identity does."""
    return {
        "kind": "img2img",
        "init_images": [encoded(picture)],
        "width": WIDTH,
        "height": HEIGHT,
        "steps": 5,
        "sampler_name": "Euler",
        "denoising_strength": 0.9,
        "initial_noise_multiplier": 0,
        "override_settings": {"sd_vae_encode_method": "TAESD", "sd_vae_decode_method": "TAESD"},
        **request,
    }


def columns(mask: Picture) -> tuple[float, float]:
    """First and last column of a mask, in fractions of the width."""
    inside = np.flatnonzero((mask[..., 0] > 127).any(0))
    assert len(inside), "an empty mask"
    return inside[0] / mask.shape[1], inside[-1] / mask.shape[1]


def automatic(person: dict[str, Any], **tracking: Any) -> dict[str, Any]:
    tracking = {"sources": ["preview"], "fallback": "none", **tracking}
    return {**person, "regions": [], "span": {}, "tracking": tracking, "report": {"masks": True}}


@still
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_region_is_where_the_preview_shows_the_face(
    webui: WebUI, person: dict[str, Any], head: Image.Image, side: str
) -> None:
    picture = scene(head, side)
    made = webui.make(automatic(person, decoder="taesd"), **asked(picture))
    plain = webui.one(None, **asked(picture))
    result, mask = made.pictures
    low, high = columns(mask)
    assert FACE[side][0] < low < high < FACE[side][1]
    changed = np.abs(result - plain).sum(-1)
    inside = mask[..., 0] > 127
    assert changed[inside].mean() > 3 * changed[~inside].mean()


@still
def test_the_same_seed_is_the_same_picture(webui: WebUI, person: dict[str, Any], head: Image.Image) -> None:
    picture = scene(head, "left")
    one, other = (webui.make(automatic(person), **asked(picture)).pictures for _ in range(2))
    assert largest(one[0], other[0]) == 0 and largest(one[1], other[1]) == 0


@still
def test_two_people_in_their_places(webui: WebUI, person: dict[str, Any], head: Image.Image) -> None:
    both = {**automatic(person), "references": [*person["references"], {**person["references"][0], "identity": 1}]}
    made = webui.make(both, **asked(scene(head, "left", "right")))
    left, right = (columns(mask) for mask in made.pictures[1:])
    assert FACE["left"][0] < left[0] < left[1] < FACE["left"][1]
    assert FACE["right"][0] < right[0] < right[1] < FACE["right"][1]


@still
def test_a_batch_has_a_region_each(webui: WebUI, person: dict[str, Any], head: Image.Image) -> None:
    made = webui.make(automatic(person), **asked(scene(head, "left"), batch_size=2, n_iter=2))
    masks = [picture for picture in made.pictures if np.ptp(picture.max(-1) - picture.min(-1)) == 0][-4:]
    assert len(masks) == 4
    for mask in masks:
        assert columns(mask)[1] < FACE["left"][1]


def test_without_a_face_it_says_so(webui: WebUI, person: dict[str, Any]) -> None:
    """A random model shows no face: nothing is adapted when that is what was asked for, and the user is told."""
    plain = webui.one()
    none = webui.make(automatic(person))
    assert largest(none.pictures[0], plain) == 0
    late = webui.make(automatic(person, fallback="late"), steps=6)
    assert largest(late.pictures[0], webui.one(None, steps=6)) > 0


@pytest.mark.parametrize("sampler", ["Euler a", "Heun", "DPM++ 2M", "DPM++ SDE", "DDIM", "UniPC", "LCM"])
def test_every_sampler_is_followed(webui: WebUI, person: dict[str, Any], sampler: str) -> None:
    """Late in the run the identity comes in, whatever the sampler calls a step."""
    adapter = automatic(person, fallback="late")
    on, off = (webui.one(one, steps=6, sampler_name=sampler) for one in (adapter, None))
    assert largest(on, off) > 0


def test_the_attention_of_the_prompt_is_read(webui: WebUI, person: dict[str, Any]) -> None:
    adapter = automatic(person, sources=["attention"], words="garden")
    assert webui.answer(adapter, prompt="a (garden:1.2) with a man AND a house", steps=4).status_code == 200


def test_the_hires_pass_follows_too(webui: WebUI, person: dict[str, Any]) -> None:
    hires: dict[str, Any] = {
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.6,
        "steps": 4,
        "hr_additional_modules": ["Use same choices"],  # Forge fails without
    }
    on, off = (webui.one(one, **hires) for one in (automatic(person, fallback="late"), None))
    assert largest(on, off) > 0
