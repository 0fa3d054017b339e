"""Other extensions for tiles and regions, as they are, in a running WebUI; skipped where an extension is not there.

Pictures are decoded by TAESD (in the WebUI's models), whose reach is short: what changes in the latents changes there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.real.conftest import Picture, WebUI, encoded, largest
from tests.real.test_generation import ROUNDING, VISIBLE

pytestmark = pytest.mark.real
SIZE: dict[str, Any] = {  # 32 x 24 cells; Tiled Diffusion's smallest tiles have 16
    "width": 256, "height": 192, "steps": 2, "override_settings": {"sd_vae_decode_method": "TAESD"},
}  # fmt: skip
LEFT = {"kind": "box", "box": {"x1": 0.25}}
ALL = {"kind": "box", "box": {}}
STRICT: dict[str, Any] = {"strict_text_region": True}


def script(webui: WebUI, title: str, kind: str = "txt2img", **values: Any) -> dict[str, Any]:
    """``alwayson_scripts`` that turns an extension on; ``values`` by label, with ``_`` for a blank."""
    found = [
        one for one in webui.get("/sdapi/v1/script-info")
        if one["name"] == title.lower() and one["is_img2img"] == (kind == "img2img")
    ]  # fmt: skip
    if not found:
        pytest.skip(f"{title} is not installed")
    wanted = {name.replace("_", " "): value for name, value in values.items()}
    args = [wanted.pop(arg["label"], arg["value"]) for arg in found[0]["args"]]
    args[0] = True  # its switch, whatever it is called
    assert not wanted, f"{title} has no {list(wanted)} among {[arg['label'] for arg in found[0]['args']]}"
    return {"alwayson_scripts": {title: {"args": args}}}


def tiled_diffusion(webui: WebUI, kind: str = "txt2img", **values: Any) -> dict[str, Any]:
    on = {"Latent_tile_width": 16, "Latent_tile_height": 16, "Latent_tile_overlap": 4}
    return script(webui, "Tiled Diffusion", kind, **on, **values)


def multidiffusion(webui: WebUI, **values: Any) -> dict[str, Any]:
    tiles: dict[str, Any] = {"Tile_Width": 128, "Tile_Height": 128, "Tile_Overlap": 32}
    return script(webui, "MultiDiffusion Integrated", **tiles, **values)


def in_tiles(webui: WebUI, method: str, batch: int) -> dict[str, Any]:
    titles = {one["name"] for one in webui.get("/sdapi/v1/script-info")}
    if "multidiffusion integrated" in titles:
        return multidiffusion(webui, Method=method, Tile_Batch_Size=batch)
    return tiled_diffusion(webui, Method=method, Latent_tile_batch_size=batch)


def change(one: Picture, other: Picture, left: float, right: float) -> float:
    """Mean difference between two sides, as fractions of the width."""
    width = one.shape[1]
    return float(np.abs(one - other)[:, round(left * width) : round(right * width)].mean())


@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [1, 2], ids=["one", "two pictures"])
def test_a_region_in_tiles(webui: WebUI, person: dict[str, Any], method: str, batch: int, size: int) -> None:
    """With a strict text region the picture changes there, and hardly anywhere else."""
    tiles: dict[str, Any] = {**SIZE, **in_tiles(webui, method, batch), "batch_size": size}
    plain = webui.make(**tiles).pictures[-1]
    made = webui.make({**person, **STRICT, "regions": [LEFT]}, **tiles).pictures[-1]
    inside, outside = change(plain, made, 0, 0.25), change(plain, made, 0.5, 1)
    assert inside > 3 and inside > 20 * outside
    assert largest(plain, webui.make(**tiles).pictures[-1]) == 0


def test_a_region_of_all_tiles_is_the_whole_picture(webui: WebUI, person: dict[str, Any]) -> None:
    tiles: dict[str, Any] = {**SIZE, **in_tiles(webui, "MultiDiffusion", 2)}
    whole, box = webui.one(person, **tiles), webui.one({**person, "regions": [ALL]}, **tiles)
    assert largest(whole, box) <= ROUNDING
    assert largest(whole, webui.one(**tiles)) > VISIBLE
    forms = [webui.one({**person, "regions": [LEFT], "performance": {"form": f}}, **tiles) for f in ("folded", "plain")]
    assert largest(*forms) <= ROUNDING


@pytest.mark.parametrize("negative", ["", "ugly"], ids=["its prompt", "its negative prompt too"])
def test_prompts_of_regions_in_tiled_diffusion(webui: WebUI, person: dict[str, Any], negative: str) -> None:
    region = {"Enable_Region_1": True, "x": 0.0, "y": 0.1, "w": 0.6, "h": 0.8}
    on = tiled_diffusion(webui, Enable_Control=True, Draw_full_canvas_background=True)
    info = next(one for one in webui.get("/sdapi/v1/script-info") if one["name"] == "tiled diffusion")
    labels = [arg["label"] for arg in info["args"]]
    args, first = on["alwayson_scripts"]["Tiled Diffusion"]["args"], labels.index("Enable Region 1")
    for offset, value in enumerate([*region.values(), "a red hat", negative]):
        args[first + offset] = value
    for prompt in ("a person in a garden", "a person in a garden, " * 20):
        request = {**SIZE, **on, "prompt": prompt}
        plain = webui.one(**request)
        made = webui.one({**person, **STRICT, "regions": [LEFT]}, **request)
        inside, outside = change(plain, made, 0, 0.25), change(plain, made, 0.65, 1)
        assert inside > 3 and inside > 20 * outside


def test_noise_inversion_of_tiled_diffusion(webui: WebUI, person: dict[str, Any], portrait: Any) -> None:
    on = tiled_diffusion(webui, "img2img", Enable_Noise_Inversion=True, Inversion_steps=2, Scale_Factor=1.0)
    request: dict[str, Any] = {
        **SIZE,
        **on,
        "sampler_name": "Euler",
        "init_images": [encoded(portrait)],
        "denoising_strength": 0.5,
    }
    plain, made = (webui.one(who, "img2img", **request) for who in (None, {**person, "regions": [LEFT]}))
    assert largest(plain, made) > VISIBLE


def test_demofusion_is_refused_with_a_region(webui: WebUI, person: dict[str, Any]) -> None:
    on = script(webui, "DemoFusion", Latent_window_size=16, Latent_window_overlap=4)
    answer = webui.answer({**person, "regions": [LEFT]}, **SIZE, **on)
    assert answer.status_code == 422 and "where in it they lie cannot be found" in answer.json()["detail"]
    assert webui.answer(person, **SIZE, **on).status_code == 200


def regional_prompter(webui: WebUI, **values: Any) -> dict[str, Any]:
    return script(webui, "Regional Prompter", **{"Divide_Ratio": "1,1", **values})


REGIONAL = "a person in a garden BREAK a red hat, a wall"


@pytest.mark.parametrize("negative", ["bad", "bad BREAK worse"], ids=["undivided", "divided alike"])
def test_regional_prompter_by_attention(webui: WebUI, person: dict[str, Any], negative: str) -> None:
    request: dict[str, Any] = {**SIZE, **regional_prompter(webui), "prompt": REGIONAL, "negative_prompt": negative}
    plain = webui.one(**request)
    asked = {**person, "regions": [LEFT]}
    folded, inner = (webui.one({**asked, "performance": {"form": f}}, **request) for f in ("folded", "plain"))
    assert largest(folded, inner) <= ROUNDING
    assert largest(plain, folded) > VISIBLE
    assert largest(plain, webui.one(**request)) == 0
    strict = webui.answer({**asked, **STRICT}, **request)
    refused = strict.status_code == 422 and "Regional Prompter in attention mode" in strict.json()["detail"]
    assert refused or strict.status_code == 200


def test_regional_prompter_by_latents(webui: WebUI, person: dict[str, Any]) -> None:
    request: dict[str, Any] = {
        **SIZE,
        **regional_prompter(webui, Generation_Mode="Latent"),
        "prompt": REGIONAL,
        "batch_size": 2,
    }
    asked = {**person, **STRICT, "regions": [LEFT]}
    plain = webui.make(**request)
    answer = webui.answer(asked, **request)
    if answer.status_code == 422:  # in Forge it calls the UNet with parts of what it says
        assert "Regional Prompter's latent mode" in answer.json()["detail"]
        return
    made = webui.make(asked, **request)
    for one, other in zip(plain.pictures[-2:], made.pictures[-2:], strict=True):
        inside, outside = change(one, other, 0, 0.25), change(one, other, 0.5, 1)
        assert inside > 3 and inside > 20 * outside


def test_forge_couple(webui: WebUI, person: dict[str, Any]) -> None:
    on = script(webui, "Forge Couple")
    request: dict[str, Any] = {**SIZE, **on, "prompt": "a person in a garden\na red hat, a wall", "batch_size": 2}
    asked = {**person, "regions": [LEFT]}
    plain = webui.make(**request).pictures[-1]
    for more in ({}, STRICT):
        folded, inner = (
            webui.make({**asked, **more, "performance": {"form": f}}, **request).pictures[-1]
            for f in ("folded", "plain")
        )
        assert largest(folded, inner) <= ROUNDING
        assert change(plain, folded, 0, 0.25) > (20 if more else 1) * change(plain, folded, 0.5, 1)


def test_latent_couple(webui: WebUI, person: dict[str, Any]) -> None:
    on = script(webui, "Latent Couple extension", Divisions="1:1,1:2", Positions="0:0,0:1")
    request: dict[str, Any] = {**SIZE, **on, "prompt": "a person in a garden AND a red hat"}
    plain, made = webui.one(**request), webui.one({**person, **STRICT, "regions": [LEFT]}, **request)
    assert change(plain, made, 0, 0.25) > 20 * change(plain, made, 0.5, 1)
