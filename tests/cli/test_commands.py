"""``faces``, ``inspect``, ``settings``, ``models``, and how quickly the program starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dp_adapter.cli import main
from dp_adapter.settings import Settings, walk_fields
from dp_adapter.weights.families import personal
from dp_adapter.weights.families.personal import Personal
from tests import tiny

Capture = pytest.CaptureFixture[str]
HEAVY = {"torch", "numpy", "PIL", "cv2", "onnxruntime", "transformers", "diffusers", "tqdm"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["identities", "save", "--help"],
        ["--version"],
        ["settings", "--schema"],
        ["settings", "--table"],
        ["models", "list"],
        ["modes"],
    ],
)
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys, runpy\n"
        f"sys.argv = ['dp-adapter', *{arguments!r}]\n"
        "try:\n    runpy.run_module('dp_adapter', run_name='__main__')\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.stderr == "" and done.stdout.splitlines()[-1] == "[] 0"
    assert len(done.stdout.splitlines()) > 1


def test_an_unknown_command_in_a_real_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dp_adapter", "inspect", "absent.bin"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and "There is no file absent.bin" in done.stdout


def test_faces(portrait: Path, faceless: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["faces", str(portrait)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("512x512, 1 face(s), numbered from the left") and lines[1].startswith("  0: ")
    assert main(["faces", str(faceless), str(portrait), "--json", "--parts", "--out", str(tmp_path / "out")]) == 1
    none, one = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert none["faces"] == [] and len(one["faces"]) == 1 and one["size"] == [512, 512]
    assert one["faces"][0]["face_px"] > 50 and one["annotated"] == str(tmp_path / "out" / f"{portrait.stem}_faces.png")
    with Image.open(one["annotated"]) as drawn, Image.open(portrait) as plain:
        assert drawn.size[0] * plain.size[1] == drawn.size[1] * plain.size[0], "in its proportions"
        assert drawn.resize(plain.size).tobytes() != plain.convert("RGB").tobytes()


def test_faces_refusals(portrait: Path, capsys: Capture) -> None:
    assert main(["faces", "absent.png"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("dp-adapter: There is no file 'absent.png'.")
    assert main(["faces", str(portrait), "--out", str(portrait)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_regions(portrait: Path, faceless: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert main(["regions", str(portrait), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("512x512, 1 face(s), numbered from the left")
    assert lines[1].startswith("  person 1: face 1 of the init picture, counted from the left; 4.")
    assert "down 64x64" in lines[2] and "middle 8x8" in lines[2] and lines[2].endswith("%")
    stem = portrait.stem
    kinds = ("regions", "parts", "pyramid")
    assert [line.removeprefix("  -> ") for line in lines[3:]] == [
        *(str(out / f"{stem}_{kind}.png") for kind in kinds), str(out / f"{stem}_regions.json"),
    ]  # fmt: skip
    facts = json.loads((out / f"{stem}_regions.json").read_text())
    (region,) = facts["regions"]
    assert region["known"] and region["parts"]["hair"] > region["parts"]["eyes"] > 0 and len(facts["faces"]) == 1
    assert list(region["gates"]) == [
        "down 64x64", "down 32x32", "down 16x16", "middle 8x8", "up 16x16", "up 32x32", "up 64x64",
    ]  # fmt: skip
    assert main(["regions", str(portrait), "--out", str(out), "--noise", "0.3", "--base", "sdxl"]) == 0
    noised = json.loads((out / f"{stem}_0.30_regions.json").read_text())
    assert noised["progress"] == 0.3 and len(noised["faces"]) == 1
    assert list(noised["regions"][0]["gates"]) == ["down 32x32", "down 16x16", "middle 16x16", "up 16x16", "up 32x32"]
    assert all(Image.open(out / f"{stem}_0.30_{kind}.png").size[0] >= 512 for kind in kinds)


def test_regions_follow_the_settings(portrait: Path, faceless: Path, tmp_path: Path, capsys: Capture) -> None:
    small = tmp_path / "small.png"
    with Image.open(portrait) as picture:
        picture.resize((256, 256)).save(small)

    def coverage(*given: str) -> float:
        assert main(["regions", str(small), "--out", str(tmp_path), *given]) == 0
        (region,) = json.loads((tmp_path / "small_regions.json").read_text())["regions"]
        return region["coverage"]

    file = tmp_path / "settings.json"
    file.write_text('{"regions": [{}, {"kind": "box", "box": {"x1": 0.5}, "op": "subtract"}]}')
    plain, halved = coverage(), coverage("--settings", str(file))
    assert 0 < halved < plain < coverage("--set", "tracking.grow=0.3") < coverage("--set", "parts.background=1")
    assert "a box" in capsys.readouterr().out
    assert coverage("--set", "mode=expression", "--set", "expression=laughing") < plain, "as the mode has the parts"
    assert main(["regions", str(faceless), "--out", str(tmp_path)]) == 1
    assert "nothing says where the face will be; 100.0% of the picture" in capsys.readouterr().out
    assert main(["regions", str(portrait), "--set", "weigth=1", "--out", str(tmp_path)]) == 1
    assert "Did you mean 'weight'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["regions", str(portrait), "--noise", "3"])


def test_inspect(models: Path, tmp_path: Path, capsys: Capture) -> None:
    plus = tiny.write(tmp_path / "plus.bin", tiny.family_tensors("faceid-plus"), "zip")
    own = models / "dp_adapter" / "untrained.safetensors"
    assert main(["inspect", str(own), str(plus)]) == 0
    text = capsys.readouterr().out
    assert (
        "DP-Adapter" in text
        and "sface (128)" in text
        and "faceid-plusv2 or faceid-plus" in text
        and "128 layers" in text
    )
    text_file = tmp_path / "notes.txt"
    text_file.write_text("hello")
    lora = tiny.write(
        tmp_path / "lora.safetensors", {f"lora_unet_{k}": v for k, v in tiny.lora_layers("sd15").items()}, "safetensors"
    )
    assert main(["inspect", "--json", str(text_file), str(lora), str(own), str(tmp_path)]) == 1
    notes, foreign, good, folder = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert "no weight file" in notes["error"] and foreign["type"] == "no adapter: a LoRA" and "prompt" in foreign["use"]
    assert good["base"] == "SD1.5" and good["sites"] == 16 and len(good["sha256"]) == 64 and "error" not in good
    assert "There is no file" in folder["error"]


def test_inspect_tells_that_no_photo_is_needed(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "ada.safetensors"
    personal.save(path, Personal(torch.zeros(8), torch.zeros(2, 16)), "sd15", "Ada", {"steps": 320})
    assert main(["inspect", "--json", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["needs"], facts["family"], facts["sites"]) == ("no photo", "personal", 0)
    assert facts["training"] == '{"steps": 320}'


def test_settings(tmp_path: Path, capsys: Capture) -> None:
    assert main(["settings", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert main(["settings", "--defaults"]) == 0
    defaults = capsys.readouterr().out
    assert set(json.loads(defaults)) <= set(schema["properties"])
    assert Settings.from_json(defaults) == Settings()
    assert main(["settings", "--table"]) == 0
    table = capsys.readouterr().out
    assert all(f"{path} " in table for path, _ in walk_fields())
    file = tmp_path / "request.json"
    file.write_text(defaults)
    assert main(["settings", "--check", str(file)]) == 0 and "is valid" in capsys.readouterr().out
    for content, words in (
        ('{"weight": 7}', "weight: 7"),
        ('{"wieght": 1}', "Did you mean 'weight'"),
        ("{", "not JSON"),
    ):
        file.write_text(content)
        assert main(["settings", "--check", str(file)]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and words in captured.err and captured.err.count("\n") == 1
    for path in (tmp_path / "absent.json", tmp_path):
        assert main(["settings", "--check", str(path)]) == 1
        assert "cannot be read" in capsys.readouterr().err
    file.write_bytes(b"\xff\xfe\x00")
    assert main(["settings", "--check", str(file)]) == 1 and "cannot be read" in capsys.readouterr().err


def test_models(tmp_path: Path, capsys: Capture) -> None:
    root = ["--models-dir", str(tmp_path)]
    assert main(["models", "list", *root]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("ID") and str(tmp_path) in listed and "missing" in listed
    assert main(["models", "where", *root]) == 0 and str(tmp_path) in capsys.readouterr().out
    assert main(["models", "verify", *root]) == 0
    assert capsys.readouterr().out.startswith("Nothing was compared")
    assert main(["models", "get", "no-such-model", *root]) == 1
    assert capsys.readouterr().err.startswith("dp-adapter: ")
    (tmp_path / "foreign.bin").write_bytes(b"x")
    assert main(["models", "verify", str(tmp_path / "foreign.bin"), *root]) == 1
    assert "BAD" in capsys.readouterr().out


def test_the_models_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("DP_ADAPTER_MODELS", str(tmp_path / "mine"))
    assert main(["models", "where"]) == 0 and capsys.readouterr().out.startswith(str(tmp_path / "mine"))
    assert main(["models", "where", "--models-dir", str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "other"))


def test_the_shipped_networks_verify(capsys: Capture) -> None:
    shipped = Path(__file__).parents[2] / "models"
    assert main(["models", "verify", "--models-dir", str(shipped)]) == 0
    assert capsys.readouterr().out.count("ok ") >= 3


def test_modes(tmp_path: Path, capsys: Capture) -> None:
    assert main(["modes", "--models-dir", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "full_body" in told and "age (asks for target_age)" in told and "custom:" not in told
    folder = tmp_path / "dp_adapter" / "modes"
    folder.mkdir(parents=True)
    (folder / "mine.json").write_text('{"does": "Something.", "words": [{"text": "noir", "end": 0.5}]}')
    (folder / "bad.json").write_text('{"wrods": []}')
    assert main(["modes", "--models-dir", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "custom:mine\n  Something.\n  Words: noir (up to 0.5)." in told and "Did you mean 'words'?" in told
    assert main(["modes", "custom:mine", "--models-dir", str(tmp_path)]) == 0
    assert "full_body" not in capsys.readouterr().out
    assert main(["modes", "custom:bad", "--models-dir", str(tmp_path)]) == 1
    assert "bad.json is not a mode" in capsys.readouterr().err
