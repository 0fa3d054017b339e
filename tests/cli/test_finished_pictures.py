"""Report, candidates, drift and the face pass on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
from dp_adapter.session.results.best_of import STRIDE
from tests.cli.conftest import Generate

Shown = dict[int, Path]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> tuple[Shown, list[DiffusersJob]]:
    """By seed, the picture that takes the place of the untrained base's, which shows nobody; and the jobs that ran."""
    pictures: Shown = {}
    jobs: list[DiffusersJob] = []
    run = load_pipeline.run

    def shows(pipeline: Any, job: DiffusersJob, *args: Any, **named: Any) -> list[Any]:
        jobs.append(job)
        made = run(pipeline, job, *args, **named)
        for number in range(job.batch):
            if job.init is None and job.seed + number in pictures:
                with Image.open(pictures[job.seed + number]) as picture:
                    small = picture.convert("RGB").resize((job.width, job.height))
                made[number] = np.asarray(small, np.uint8)
        return made

    monkeypatch.setattr(load_pipeline, "run", shows)
    return pictures, jobs


def facts(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        return {**json.loads(str(picture.info["dp_adapter"])), "parameters": str(picture.info["parameters"])}


SIZE = ("--width", "256", "--height", "256", "--seed", "7")


def test_the_best_of_three(generate: Generate, shown: tuple[Shown, list[DiffusersJob]], portrait: Path) -> None:
    pictures, jobs = shown
    pictures[7 + STRIDE] = portrait
    made = generate(*SIZE, "--box", "0,0,0.5,1", "--set", "report.best_of=3", "--set", "report.drift=true")
    assert made.code == 0, made.err
    assert [job.seed for job in jobs] == [7, 7 + STRIDE, 7 + 2 * STRIDE, 7 + STRIDE]
    assert [path.name for path in made.pictures] == [f"00000_{7 + STRIDE}.png"]
    told = facts(made.pictures[0])
    assert told["report"]["candidate"] == "2 of 3" and float(told["report"]["likeness"]) > 0.9
    assert told["report"]["judge"] == "SFace, which also guided the picture"
    assert told["report"]["drift outside"] == "0.000000", "the same picture was put in place of both"
    assert told["settings"]["report"]["best_of"] == 3 and told["job"]["seed"] == 7 + STRIDE
    assert "DP-Adapter result candidate: 2 of 3" in told["parameters"]
    assert "best of" not in told["parameters"] and "candidate 2 of 3" in made.out


def test_a_picture_below_is_left_out(
    generate: Generate, shown: tuple[Shown, list[DiffusersJob]], portrait: Path
) -> None:
    shown[0][8] = portrait
    flags = ("--batch", "2", "--set", "report.least=0.8", "--set", "report.below=skip")
    made = generate(*SIZE, *flags)
    assert made.code == 0 and [path.name for path in made.pictures] == ["00000_8.png"]
    assert "Left out, being below the least likeness: seed 7, 0 faces, likeness not found by SFace" in made.out
    assert len(shown[1]) == 1, "one run of the sampler made both"


def test_drift_of_a_box(generate: Generate) -> None:
    flags = ("--width", "128", "--height", "128", "--weight", "1.5", "--box", "0.5,0,1,0.5")
    made = generate(*flags, "--set", "report.drift=true", "--compare")
    told = facts(made.pictures[0])["report"]
    assert float(told["drift inside"]) > 2 * float(told["drift outside"]) > 0
    assert facts(made.pictures[1])["report"] == {}, "without the adapter nobody drifts"


def test_the_face_pass(generate: Generate, shown: tuple[Shown, list[DiffusersJob]], portrait: Path) -> None:
    shown[0][7] = portrait
    flags = ("--set", "face_pass.use=on", "--set", "face_pass.size=256", "--set", "face_pass.strength=0.5")
    made = generate(*SIZE, *flags, "--set", "report.enabled=true")
    assert made.code == 0, made.err
    first, over = shown[1]
    assert first.task == "txt2img" and over.task == "img2img" and (over.width, over.strength) == (256, 0.5)
    assert facts(made.pictures[0])["report"]["face pass"] == "1 of 1"
    with Image.open(made.pictures[0]) as after, Image.open(portrait) as before:
        change = np.abs(np.asarray(after).astype(int) - np.asarray(before.convert("RGB").resize((256, 256)))).mean(-1)
    assert change[40:75, 95:130].mean() > 3 and change[150:].max() == 0, "the face is another, the rest as it was"
    again = generate(*SIZE, *flags, "--set", "report.enabled=true")
    assert np.array_equal(np.asarray(Image.open(again.pictures[0])), np.asarray(Image.open(made.pictures[0])))


def test_no_face_to_make_anew(generate: Generate) -> None:
    made = generate("--set", "face_pass.use=on", "--set", "report.enabled=true")
    told = facts(made.pictures[0])["report"]
    assert told["face pass"] == "no face" and told["likeness"] == "no face" and "0 faces" in made.out
