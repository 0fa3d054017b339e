"""From pictures to shards: what is kept and why not, that a cut run ends the same, and what is refused before work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dp_adapter.cli import main
from dp_adapter.errors import PictureError, SettingsError
from dp_adapter.identity.faces.face_parsing import BACKGROUND, FACE_SKIN, HAIR
from dp_adapter.training.data.sample import Sample
from dp_adapter.training.prepare.examine_picture import examine
from dp_adapter.training.prepare.picture_result import Task
from dp_adapter.training.prepare.prepare_options import PrepareOptions
from dp_adapter.training.prepare.prepare_shards import prepare
from dp_adapter.training.prepare.work_runners import run_in_processes, run_on_ray

OPTIONS = PrepareOptions(size=256)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples(folder: Path) -> list[Sample]:
    webdataset = pytest.importorskip("webdataset")
    shards = [str(path) for path in sorted(folder.glob("shard-*.tar"))]
    return [Sample.from_record(record) for record in webdataset.WebDataset(shards, shardshuffle=False)]


@pytest.fixture(scope="module")
def folder(portrait: Path, faceless: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good photo, and one for most reasons to drop a picture."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "ann").mkdir()
    shutil.copy(portrait, folder / "ann" / "good.png")
    (folder / "ann" / "good.txt").write_text("an astronaut  in an orange\nsuit", encoding="utf-8")
    shutil.copy(portrait, folder / "ann" / "same.png")
    shutil.copy(faceless, folder / "wall.png")
    image = Image.open(portrait)
    image.resize((400, 400)).save(folder / "ann" / "smaller.jpg", quality=80)
    image.filter(ImageFilter.GaussianBlur(6)).save(folder / "blurred.jpg")
    face = image.crop((120, 0, 340, 256))
    two = Image.new("RGB", (440, 256))
    two.paste(face, (0, 0))
    two.paste(face.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (220, 0))
    two.save(folder / "two.png")
    (folder / "broken.jpg").write_bytes((folder / "blurred.jpg").read_bytes()[:2000])
    (folder / "notes.md").write_text("no picture", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    prepare(folder, out, OPTIONS)
    return out


def test_what_is_kept_can_be_read_and_what_is_not_is_counted(shards: Path) -> None:
    assert set(contents(shards)) == {"manifest.json", "statistics.html", "shard-000000.tar"}
    manifest = json.loads((shards / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["counts"] == {
        "pictures": 7,
        "other_files": 2,
        "samples": 1,
        "people": 1,
        "dropped": {
            "unreadable": 1, "no face": 1, "several faces": 1, "blurred": 1, "same file": 1, "near duplicate": 1,
        },
        "captions": {"sidecar": 1},
        "unreadable_captions": 0,
    }  # fmt: skip
    (sample,) = samples(shards)
    assert sample.caption == "an astronaut in an orange suit"
    assert manifest["people"] == {sample.person: [sample.key]}
    assert manifest["shards"][0]["keys"] == [sample.key]
    assert sample.facts["source"] == "ann/good.png"
    assert sample.picture.shape == (256, 256, 3)
    assert sample.labels.shape == (256, 256)
    x0, y0, x1, y1 = (round(value) for value in sample.box)
    assert (sample.labels[y0:y1, x0:x1] == FACE_SKIN).mean() > 0.5
    assert (sample.labels == HAIR).any()
    inside = (sample.points > [x0, y0]).all() and (sample.points < [x1, y1]).all()
    assert inside
    assert np.linalg.norm(sample.embeddings["sface"]) == pytest.approx(1, abs=1e-2)


def test_the_page_shows_counts_and_examples(shards: Path) -> None:
    page = (shards / "statistics.html").read_text(encoding="utf-8")
    for word in ("several faces", "near duplicate", "ann/smaller.jpg", "an astronaut in an orange suit", "yaw"):
        assert word in page
    assert page.count("data:image/jpeg") == 6  # all but the broken one


def test_a_killed_run_goes_on_and_ends_the_same(folder: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def killed(done: int, total: int, counts: Mapping[str, int]) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(folder, out, OPTIONS, progress=killed)
    done = list((out / "work").rglob("*.zip"))
    assert 0 < len(done) < 6
    half = done[0]
    half.write_bytes(half.read_bytes()[:100])  # as a power cut leaves it
    (out / ".dp_adapter-00000000-1-00000000-00000000.tmp").mkdir()
    os.utime(out / ".dp_adapter-00000000-1-00000000-00000000.tmp", (0, 0))
    with pytest.raises(SettingsError, match="size 256, now 128"):
        prepare(folder, out, PrepareOptions(size=128))
    seen: list[Mapping[str, int]] = []
    prepare(
        folder, out, OPTIONS, runner=run_in_processes(2), progress=lambda done, total, counts: seen.append(dict(counts))
    )
    assert seen[-1]["files"] == 7
    assert seen[-1]["done before"] == len(done) - 1
    assert contents(out) == contents(shards)


def test_a_finished_folder_is_left_alone(folder: Path, shards: Path) -> None:
    before = contents(shards)
    manifest, there = prepare(folder, shards, OPTIONS)
    assert there
    assert manifest["counts"]["samples"] == 1
    assert contents(shards) == before
    with pytest.raises(SettingsError, match="other options"):
        prepare(folder, shards, PrepareOptions(size=128))


def test_two_people_in_a_picture_are_two_samples_of_their_own(folder: Path) -> None:
    options = PrepareOptions(size=256, several="each", crop="head", lossless=True)
    task = Task("0" * 64, (folder / "two.png").read_bytes())
    outcome = examine(task, options, ())
    left, right = (Sample.from_record(record) for record in outcome.records)
    assert left.key != right.key
    for sample in (left, right):
        x0, _, x1, _ = sample.box
        beyond = sample.labels[:, int(x1) + 70 :] if sample is left else sample.labels[:, : max(0, int(x0) - 70)]
        assert (beyond == BACKGROUND).all()
        assert min(sample.picture.shape[:2]) <= 256


def test_an_odd_failure_is_a_drop() -> None:
    (drop,) = examine(Task("0" * 64, cast("Any", None)), OPTIONS, ()).drops
    assert drop.reason == "failed"


def test_what_can_be_known_before_the_work_is_said_before_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no picture"):
        prepare(tmp_path, tmp_path / "out", OPTIONS)
    with pytest.raises(PictureError, match="no folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out", OPTIONS)
    with pytest.raises(PictureError, match="in no sub-folder"):
        prepare(folder, tmp_path / "out", PrepareOptions(people="folders"))
    with pytest.raises(SettingsError, match="names one person"):
        PrepareOptions(several="each", people="folders")
    with pytest.raises(SettingsError, match="is none of"):
        PrepareOptions(encoders=("dlib",))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("dear", encoding="utf-8")
    with pytest.raises(SettingsError, match="not empty"):
        prepare(folder, tmp_path / "full", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_nothing_left_is_an_error_with_a_page(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(folder / "wall.png", tmp_path / "in")
    out = tmp_path / "out"
    with pytest.raises(PictureError, match="No picture is left: 1 no face"):
        prepare(tmp_path / "in", out, OPTIONS)
    assert (out / "statistics.html").is_file()
    assert not (out / "manifest.json").exists()


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_text("file,text,mood\ngood.png,a woman smiles,glad\n", encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["prepare", str(folder / "ann"), "--out", str(out), "--captions", str(table), "--crop", "head"]
    assert main([*arguments, "--jobs", "0"]) == 1
    assert main([*arguments, "--size", "256", "--keep-work"]) == 0
    assert "1 samples of 1 people from 3 pictures" in capsys.readouterr().out
    (sample,) = samples(out)
    assert sample.caption == "a woman smiles"
    assert sample.facts["told"]["mood"] == "glad"
    assert (out / "work").is_dir()
    before = contents(out)
    assert main([*arguments, "--size", "256", "--keep-work"]) == 0  # as when pictures were added
    assert "done before=" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.real
def test_ray_gives_the_same(folder: Path, shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    prepare(folder, tmp_path / "out", OPTIONS, runner=run_on_ray(None))
    assert contents(tmp_path / "out") == contents(shards)
