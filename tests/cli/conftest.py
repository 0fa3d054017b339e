"""``dp-adapter generate`` on the tiny base, as a user types it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dp_adapter.cli import main
from dp_adapter.hosts.pipelines import load_pipeline


class Outcome(NamedTuple):
    """What a command leaves behind; ``pictures`` are the new ones in the order they were told."""

    code: int
    out: str
    err: str
    pictures: list[Path]


Generate = Callable[..., Outcome]


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder: Path) -> load_pipeline.Pipeline:
    return load_pipeline.load(tiny_folder, "cpu", "float32")


@pytest.fixture(autouse=True)
def opened_once(tiny_folder: Path, tiny_pipeline: load_pipeline.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands run in one opened base, which saves time and shows that each leaves it as it was."""
    load = load_pipeline.load

    def opened(base: Path, device: str, dtype: str) -> load_pipeline.Pipeline:
        return tiny_pipeline if (base, device) == (tiny_folder, "cpu") else load(base, device, dtype)

    monkeypatch.setattr(load_pipeline, "load", opened)


@pytest.fixture
def generate(
    tiny_folder: Path, models: Path, portrait: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Generate:
    """Runs the command with a base, a models folder, a small size and, unless told otherwise, the portrait."""

    def run(*flags: str | Path, photo: Path | None = portrait, prompt: str = "a garden") -> Outcome:
        given = [str(flag) for flag in flags]
        defaults = ["--base", str(tiny_folder), "--models-dir", str(models), "--out", str(tmp_path / "out")]
        defaults += ["--prompt", prompt, "--steps", "2", "--sampler", "ddim", "--device", "cpu"]
        defaults += [] if "--init" in given else ["--width", "64", "--height", "64"]
        defaults += [] if photo is None else ["--photo", str(photo)]
        capfd.readouterr()
        code = main(["generate", *defaults, *given])
        captured = capfd.readouterr()
        pictures = [Path(line[3:]) for line in captured.out.splitlines() if line.startswith("-> ")]
        return Outcome(code, captured.out, captured.err, pictures)

    return run
