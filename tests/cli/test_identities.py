"""``dp-adapter identities`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dp_adapter.cli import main
from tests.cli.conftest import Generate

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, *arguments: str | Path, models: Path, code: int = 0) -> str:
    assert main(["identities", *map(str, arguments), "--models-dir", str(models)]) == code
    captured = capsys.readouterr()
    assert bool(captured.err) == (code == 1 and not captured.out)
    return captured.out or captured.err


def test_a_life(models: Path, portrait: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "No identity is saved" in told(capsys, "list", models=models)
    assert told(capsys, "list", "--json", models=models) == ""
    text = told(capsys, "save", "Anna B", portrait, models=models)
    assert text.startswith("Anna B: 1 photo(s), sface, 20") and text.endswith("identity:Anna B\n")
    assert "  arcface/buffalo_l is left out: " in text
    assert told(capsys, "list", models=models).startswith("Anna B: 1 photo(s), sface")
    (line,) = told(capsys, "list", "--json", models=models).splitlines()
    facts = json.loads(line)
    assert facts["name"] == "Anna B" and len(facts["photos"][0]) == len(facts["digest"]) == 64
    target = tmp_path / "face.png"
    shown = told(capsys, "show", "Anna B", "--thumbnail", target, models=models)
    assert facts["photos"][0][:16] in shown and "quality 0." in shown and f"-> {target}" in shown
    with Image.open(target) as thumbnail:
        assert thumbnail.size == (192, 192)
    assert json.loads(told(capsys, "show", "anna b", "--json", models=models)) == facts
    assert told(capsys, "rename", "Anna B", "Clara", models=models) == "Anna B is now Clara.\n"
    assert told(capsys, "delete", "Clara", models=models) == "Clara is deleted.\n"
    assert "No identity is saved" in told(capsys, "list", models=models)


def test_weights_and_settings(models: Path, portrait: Path, faceless: Path, capsys: Capture) -> None:
    weights = ["--photo-weight", "0.5", "--photo-weight", "1"]
    text = told(capsys, "save", "Anna", portrait, faceless, *weights, "--set", "no_face=continue", models=models)
    assert "Photo 2 was left out" in text
    assert "weight 0.5" in told(capsys, "show", "Anna", models=models)
    assert "already" in told(capsys, "save", "Anna", portrait, models=models, code=1)
    told(capsys, "save", "Anna", "identity:Anna", portrait, "--replace", models=models)


def test_refusals(models: Path, portrait: Path, faceless: Path, capsys: Capture) -> None:
    for arguments, words in (
        (("save", "../x", portrait), "cannot be the name of a saved identity"),
        (("save", "Anna", faceless), "references[0]: No face was found"),
        (("save", "Anna", "absent.png"), "no file 'absent.png'"),
        (("save", "Anna", portrait, "--photo-weight", "1", "--photo-weight", "1"), "1 photos were given, and 2"),
        (("save", "Anna", portrait, "--photo-weight", "9"), "references[0].weight: 9 is above"),
        (("save", "Anna", portrait, "--set", "wieght=1"), "wieght"),
        (("show", "Anna"), "There is no saved identity 'Anna'"),
        (("rename", "Anna", "Berta"), "There is no saved identity 'Anna'"),
        (("delete", "../../x"), "There is no saved identity"),
    ):
        text = told(capsys, *arguments, models=models, code=1)
        assert text.startswith("dp-adapter: ") and words in text and text.count("\n") == 1, text
    folder = models / "dp_adapter" / "identities"
    assert not folder.exists()
    folder.mkdir()
    (folder / "Bad.safetensors").write_bytes(b"x")
    assert "Bad: The saved identity Bad.safetensors is damaged" in told(capsys, "list", models=models, code=1)
    assert "damaged" in json.loads(told(capsys, "list", "--json", models=models, code=1))["error"]


def test_generate_with_an_identity(generate: Generate, models: Path, portrait: Path) -> None:
    assert main(["identities", "save", "Anna", str(portrait), "--models-dir", str(models)]) == 0
    from_photo = generate()
    from_identity = generate(photo="identity:Anna")  # type: ignore[arg-type]
    assert from_identity.code == 0 and "1 of saved identity 'Anna'" in from_identity.out
    one, other = (Image.open(outcome.pictures[0]).tobytes() for outcome in (from_photo, from_identity))
    assert one == other
    assert from_photo.out.count("likeness") == from_identity.out.count("likeness")
