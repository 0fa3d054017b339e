"""Photo and prompt in, pictures out: the whole way with real networks and a tiny base."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp_adapter.modes import TABLE
from tests.cli.conftest import Generate

NOIR = Path(__file__).parents[2] / "docs" / "modes" / "noir.json"

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def pixels(path: Path) -> Pixels:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def chunks(path: Path) -> dict[str, str]:
    with Image.open(path) as picture:
        return {str(key): str(value) for key, value in picture.info.items()}


def difference(one: Path, two: Path) -> np.ndarray[Any, Any]:
    return np.abs(pixels(one).astype(np.float32) - pixels(two)).mean(-1)


def test_txt2img_and_its_metadata(generate: Generate, portrait: Path) -> None:
    flags = ("--seed", "7", "--negative", "rain, fog", "--batch", "2", "--set", "curve=0.5@0, 1@1")
    made = generate(*flags)
    assert made.code == 0 and "dp-adapter 'untrained.safetensors'" in made.out
    assert [path.name for path in made.pictures] == ["00000_7.png", "00001_8.png"]
    assert pixels(made.pictures[0]).shape == (64, 64, 3)
    assert difference(*made.pictures).mean() > 1, "another seed, another picture"
    for seed, path in zip((7, 8), made.pictures, strict=True):
        text = chunks(path)
        lines = text["parameters"].split("\n")
        assert lines[:2] == ["a garden", "Negative prompt: rain, fog"]
        for part in (f"Seed: {seed}", "Steps: 2", "Sampler: ddim", "Size: 64x64", "Model: base", "DP-Adapter: "):
            assert part in lines[2]
        assert 'DP-Adapter weight curve: "0.5@0.0, 1.0@1.0"' in lines[2], "a value with commas is quoted"
        facts = json.loads(text["dp_adapter"], parse_constant=pytest.fail)
        assert facts == json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert facts["job"]["seed"] == seed and facts["job"]["kind"] == "txt2img"
        assert facts["explanation"]["active"] and facts["settings"]["curve"] == "0.5@0.0, 1.0@1.0"
        assert -1 <= facts["likeness"]["cosine"] <= 1
        for file in (path, path.with_suffix(".json")):
            assert b"secret" not in file.read_bytes() and str(portrait.parent).encode() not in file.read_bytes()


def test_no_picture_travels_inside_another(generate: Generate, portrait: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with Image.open(portrait) as picture:
        picture.crop((130, 0, 330, 240)).save(buffer, "JPEG", quality=60)
    inline = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    mask = tmp_path / "secret-mask.png"
    Image.new("L", (64, 64), 255).save(mask)
    request = {
        "references": [{"image": inline, "face": {"choice": "like", "like": str(portrait)}}],
        "face": {"choice": "like", "like": str(portrait)},
        "regions": [{"kind": "mask", "mask": str(mask)}],
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    made = generate("--settings", tmp_path / "request.json", photo=None)
    assert made.code == 0
    for file in (made.pictures[0], made.pictures[0].with_suffix(".json")):
        content = file.read_bytes()
        assert b"secret" not in content and inline[100:160].encode() not in content
    assert json.loads(chunks(made.pictures[0])["dp_adapter"])["settings"]["face"] == {"choice": "like"}


def test_the_same_command_twice(generate: Generate) -> None:
    first, second = generate("--seed", "3"), generate("--seed", "3")
    assert [path.name for path in (*first.pictures, *second.pictures)] == ["00000_3.png", "00001_3.png"]
    assert np.array_equal(pixels(first.pictures[0]), pixels(second.pictures[0]))


def test_off_is_bit_equal_and_on_is_not(generate: Generate) -> None:
    on = generate("--compare", "--set", "tracking.fallback=full")
    assert [path.name for path in on.pictures] == ["00000_0.png", "00001_0_base.png"]
    base = on.pictures[1]
    assert difference(on.pictures[0], base).mean() > 0.5
    assert not json.loads(chunks(base)["dp_adapter"])["explanation"]["active"]
    assert "DP-Adapter" not in chunks(base)["parameters"]
    for flags in (("--weight", "0"), ("--set", "enabled=false")):
        off = generate(*flags)
        assert off.code == 0 and "The adapter was off" in off.out
        assert np.array_equal(pixels(off.pictures[0]), pixels(base))
        claims = [line for line in chunks(off.pictures[0])["parameters"].split(", ") if "DP-Adapter" in line]
        told = 'DP-Adapter result identity: "none acted: its weight is 0"'
        assert claims == ([told] if "--weight" in flags else [])
    none = generate("--set", "enabled=false", photo=None)
    assert none.code == 0 and np.array_equal(pixels(none.pictures[0]), pixels(base))


def test_a_box_acts_inside(generate: Generate) -> None:
    size = ("--width", "128", "--height", "128", "--steps", "3", "--weight", "1.5")
    boxed = generate(*size, "--box", "0.5,0,1,0.5", "--compare")
    heat = difference(*boxed.pictures)
    inside = heat[:64, 64:].mean()
    outside = (heat.sum() - heat[:64, 64:].sum()) / (heat.size - 64 * 64)
    assert inside > 2 * outside, (inside, outside)


@pytest.fixture
def start(portrait: Path, tmp_path: Path) -> Path:
    """The astronaut's head and shoulders, 128 x 96."""
    path = tmp_path / "start.png"
    with Image.open(portrait) as picture:
        picture.crop((60, 20, 404, 278)).resize((128, 96)).save(path)
    return path


def test_img2img_follows_the_face(generate: Generate, start: Path) -> None:
    made = generate("--init", start, "--steps", "4", "--strength", "0.5", "--compare")
    assert made.code == 0 and "face 1 of the init picture" in made.out
    assert pixels(made.pictures[0]).shape == (96, 128, 3), "the size of the picture to start from"
    assert json.loads(chunks(made.pictures[0])["dp_adapter"])["job"]["kind"] == "img2img"
    assert difference(*made.pictures).max() > 1
    without = ("--set", "tracking.sources=[]")
    smaller = generate("--init", start, "--width", "64", "--height", "64", "--steps", "2", *without)
    assert pixels(smaller.pictures[0]).shape == (64, 64, 3)


@pytest.mark.parametrize("transparent", [False, True])
def test_inpaint_leaves_the_rest(generate: Generate, start: Path, tmp_path: Path, transparent: bool) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[:, 64:] = 255
    if transparent:
        mask = np.dstack([np.full((96, 128, 3), 255, np.uint8), mask])
    Image.fromarray(mask).save(tmp_path / "mask.png")
    made = generate("--init", start, "--inpaint-mask", tmp_path / "mask.png", "--steps", "4", "--compare")
    assert made.code == 0 and "the inpaint mask, 50% of the picture" in made.out
    for path in made.pictures:
        assert np.array_equal(pixels(path)[:, :64], pixels(start)[:, :64])
        assert difference(path, start)[:, 64:].mean() > 1
    assert difference(*made.pictures).max() > 1


def test_a_region_mask(generate: Generate, tmp_path: Path) -> None:
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    made = generate("--region-mask", tmp_path / "mask.png")
    assert made.code == 0 and "a drawn mask, 100% of the picture" in made.out


def test_photos_without_a_face(generate: Generate, faceless: Path, portrait: Path) -> None:
    stopped = generate(photo=faceless)
    assert stopped.code == 1 and stopped.err == (
        "dp-adapter: references[0]: No face was found in the picture. "
        "Give a picture in which the face is larger and unobstructed.\n"
    )
    made = generate("--set", "no_face=continue", photo=faceless)
    assert made.code == 0 and "made without the adapter" in made.out
    one_left = generate("--photo", faceless, "--set", "no_face=continue")
    assert one_left.code == 0 and "Photo 2 was left out" in one_left.out and "untrained" in one_left.out
    nobody_known = generate(
        "--photo", portrait, "--set", "references[1].identity=1", "--set", "no_face=continue", photo=faceless
    )
    assert nobody_known.code == 0 and "Person 2: 1 photo(s)" in nobody_known.out
    facts = json.loads(chunks(nobody_known.pictures[0])["dp_adapter"], parse_constant=pytest.fail)
    assert facts["likeness"]["cosine"] is None, "the first person is not there to compare with"


@pytest.mark.parametrize("mode", [*TABLE, "custom:noir"])
def test_no_mode_refuses_with_its_defaults(generate: Generate, models: Path, mode: str) -> None:
    (models / "dp_adapter" / "modes").mkdir()
    shutil.copy(NOIR, models / "dp_adapter" / "modes")
    made = generate("--set", f"mode={mode}")
    assert made.code == 0 and ("age in the photo is not known" in made.out) == (mode == "age"), made.err
    assert ("Nothing is painted anew here" in made.out) == (mode == "inpaint")


def test_off_is_off_whatever_the_mode(generate: Generate) -> None:
    made = generate("--set", "mode=full_body", "--weight", "0", "--compare")
    assert made.code == 0 and difference(*made.pictures).max() == 0
    assert "DP-Adapter result words" not in chunks(made.pictures[0])["parameters"]


def test_a_mode_is_told_and_written(generate: Generate) -> None:
    made = generate("--set", "mode=expression", "--set", "expression=sad")
    assert made.code == 0 and "Expression: Mouth, eyes and brows" in made.out and "Words: sad expression" in made.out
    lines = chunks(made.pictures[0])["parameters"].split("\n")
    assert lines[0] == "a garden" and "DP-Adapter result words: " in lines[-1]
    facts = json.loads(chunks(made.pictures[0])["dp_adapter"])
    assert facts["explanation"]["mode"] == "expression" and facts["explanation"]["words"][0]["text"].startswith("sad")
