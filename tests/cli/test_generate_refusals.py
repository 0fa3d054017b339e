"""What ``generate`` refuses: one line on stderr, exit code 1, nothing written; and the order of the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dp_adapter.cli import build_parser, main
from dp_adapter.cli.generate import settings_from
from dp_adapter.errors import SettingsError
from dp_adapter.settings import Settings
from tests.cli.conftest import Generate


def settings_of(*flags: str) -> Settings:
    return settings_from(build_parser().parse_args(["generate", "--base", "b", "--prompt", "p", *flags]))


def test_the_later_word_wins(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(
        json.dumps(
            {"version": 1, "weight": 0.3, "blend": "norm", "references": [{"image": "a.png"}, {"image": "b.png"}]}
        )
    )
    given = ("--settings", str(file))
    assert settings_of(*given).weight == 0.3
    assert settings_of(*given, "--weight", "0.5").weight == 0.5
    assert settings_of("--set", "weight=0.7", *given, "--weight", "0.5").weight == 0.7
    assert settings_of("--set", "weight=0.7", "--set", "weight=0.6").weight == 0.6
    both = settings_of(*given, "--set", "references[1].weight=0.5", "--set", "span.start=0.2")
    assert [reference.weight for reference in both.references] == [1.0, 0.5]
    assert both.blend == "norm" and both.span.start == 0.2
    replaced = settings_of(*given, "--photo", "c.png", "--set", "references[0].weight=0.5")
    assert [(reference.image, reference.weight) for reference in replaced.references] == [("c.png", 0.5)]
    assert settings_of("--box", "0.1,0.2,0.3,0.4").regions[0].box is not None
    assert settings_of("--set", 'regions=[{"kind": "full"}]').regions[0].kind == "full"


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--weight", "strong"), "weight"),
        (("--weight", "9"), "weight"),
        (("--weight", "nan"), "weight"),
        (("--box", "0.1,0.2"), "regions[0].box"),
        (("--box", "a,b,c,d"), "regions[0].box"),
        (("--box", "0.5,0,0.2,1"), "regions[0].box.x1"),
        (("--box", "nan,0,1,1"), "regions[0].box.x0"),
        (("--box", "0,0,1,1", "--region-mask", "m.png"), "regions"),
        (("--set", "weight"), "weight"),
        (("--set", "wieght=1"), "wieght"),
        (("--set", "references[0].weight=1"), "references[0].weight"),
        (("--set", "=1"), ""),
        (("--set", "face.choice=like"), "face.like"),
        (("--settings", "absent.json"), "settings"),
    ],
)
def test_refused_settings_name_the_field(flags: tuple[str, ...], field: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_of(*flags)
    assert caught.value.field == field


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight": "x"}', '{"version": 99}', '{"wieght": 1}'])
def test_a_refused_settings_file(tmp_path: Path, content: str, generate: Generate) -> None:
    (tmp_path / "request.json").write_text(content)
    one_line(generate, "--settings", tmp_path / "request.json")


def one_line(generate: Generate, *flags: str | Path, photo: Path | None = None) -> str:
    refused = generate(*flags, photo=photo)
    assert refused.code == 1 and refused.pictures == []
    assert refused.out == "" and refused.err.startswith("dp-adapter: ") and refused.err.count("\n") == 1, refused.err
    return refused.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--base", "/absent"), "There is no model /absent"),
        (("--base", __file__), "No model is this file"),
        (("--base", str(Path(__file__).parent)), "no model_index.json"),
        (("--width", "100"), "width: 100 is not a multiple of 8"),
        (("--width", "0"), "width: 0 is outside"),
        (("--steps", "0"), "steps"),
        (("--seed", "-1"), "seed"),
        (("--batch", "0"), "batch"),
        (("--guidance", "nan"), "guidance"),
        (("--sampler", "eular"), "the nearest is euler"),
        (("--device", "toaster"), "The device 'toaster' cannot be used"),
        (("--init", "absent.png"), "There is no file 'absent.png'"),
        (("--photo", "absent.png"), "references[0].image: There is no file 'absent.png'"),
        (("--photo", "https://a.org/b.png"), "never fetched"),
        ((), "there is no photo"),
    ],
)
def test_refused_commands(generate: Generate, flags: tuple[str, ...], words: str) -> None:
    assert words in one_line(generate, *flags)


def test_refused_with_a_picture(generate: Generate, portrait: Path, tmp_path: Path) -> None:
    assert "outside 64 to 4096" in one_line(generate, "--init", portrait, "--width", "-8")
    assert "outside 64 to 4096" in one_line(generate, "--init", portrait, "--width", "99999992")
    assert "needs a picture to repaint" in one_line(generate, "--inpaint-mask", portrait)
    assert "There is no model 'absent'" in one_line(generate, "--adapter", "absent", photo=portrait)
    assert "there is no mode 'mine'" in one_line(generate, "--set", "mode=custom:mine", photo=portrait)


def test_a_folder_that_cannot_be_made_is_said_before_the_work(generate: Generate, portrait: Path) -> None:
    assert str(portrait) in one_line(generate, "--out", portrait, "--base", "/absent", photo=portrait)


def test_a_broken_adapter_then_a_good_one(generate: Generate, models: Path, portrait: Path) -> None:
    good = models / "dp_adapter" / "untrained.safetensors"
    (models / "dp_adapter" / "broken.safetensors").write_bytes(good.read_bytes()[:3000])
    assert "No model was chosen" in one_line(generate, photo=portrait)
    assert "broken.safetensors is truncated or damaged" in one_line(generate, "--adapter", "broken", photo=portrait)
    assert generate("--adapter", "untrained").code == 0
    assert generate("--adapter", str(good), "--models-dir", str(models / "nothing")).code == 0, "or by its path"


@pytest.mark.parametrize("arguments", [[], ["generate"], ["fly"], ["generate", "--prompt", "x"], ["models"]])
def test_incomplete_commands_show_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: " in capsys.readouterr().err
