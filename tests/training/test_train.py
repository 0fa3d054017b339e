"""The loop: resumed to the bit, stopped in words, finished as a file that the extension reads."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dp_adapter.core.adapter import SiteAdapter
from dp_adapter.errors import TrainingError
from dp_adapter.training.config import Config, TrainingStage, from_tables
from dp_adapter.training.parallel.stopping import TrainingStopped
from dp_adapter.training.run_checkpoint import find_latest
from dp_adapter.training.train import rate, train
from dp_adapter.weights.formats import read
from dp_adapter.weights.library import Library


def cut(config: Config, after: int, *, resume: bool = False) -> None:
    """Runs until Ctrl-C comes in step number ``after``."""

    def told(sentence: str) -> None:
        if f" {after}/" in sentence:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped):
        train(config, resume=resume, log=told)
    found = find_latest(config.folder)
    assert found is not None
    assert found.name == f"step-{after:08d}"


def test_a_run_cut_in_the_middle_ends_with_the_same_bits(tables: dict[str, Any], tmp_path: Path) -> None:
    config = from_tables(tables)
    whole = train(config)
    again = from_tables({**tables, "out": str(tmp_path / "cut")})
    cut(again, after=3)  # inside the second stage
    finished = train(again, resume=True)
    for name in ("adapter.safetensors", "adapter-last.safetensors"):
        one, other = (read(path.with_name(name)).adapter.state_dict() for path in (whole, finished))
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    curves = [(path.parent / "history.jsonl").read_text().splitlines() for path in (whole, finished)]
    one, other = ([json.loads(line)["losses"] for line in lines] for lines in curves)
    assert one == other
    assert_a_finished_file(whole, config)


def assert_a_finished_file(path: Path, config: Config) -> None:
    """It is read by the extension's library, with all three pathways trained, and says what it is."""
    found = read(Library([path.parent], paths_allowed=True).resolve(str(path)))
    assert (found.family, found.base, found.encoders, found.tokens_per_photo) == ("dp-adapter", "sd15", ("sface",), 2)
    site = found.adapter.site(0)
    assert isinstance(site, SiteAdapter)
    assert site.text is not None
    assert site.text.k_up.weight.abs().max() > 0
    assert site.blending is not None
    assert float(site.blending.g) != 0
    facts = json.loads(found.metadata["training"])
    assert facts["steps"] == 6
    assert [stage["kind"] for stage in facts["stages"]] == ["iea", "tca", "ffb"]
    assert facts["data"] == {"shards": ["000.tar", "001.tar"], "samples": 12, "people": 3}
    assert len(list((path.parent / "checkpoints").glob("step-*"))) == config.watch.keep
    report = (path.parent / "report.html").read_text()
    assert report.count("data:image/png") == 3
    assert "peak memory" in report


def test_a_stage_trains_its_part_alone(tables: dict[str, Any]) -> None:
    tables["stage"] = tables["stage"][:2]
    tables["stage"][0]["steps"] = tables["stage"][1]["steps"] = 1
    tables["watch"]["keep"] = 9
    config = from_tables(tables)
    cut(config, after=1)  # at the first stage's end
    done = train(config, resume=True)
    folder = done.parent / "checkpoints"
    before, after = (
        read(folder / name / "adapter.safetensors").adapter.state_dict() for name in ("step-00000001", "step-00000002")
    )
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    text = {key: value for key, value in after.items() if ".text." in key}
    assert text.keys() == after.keys() - before.keys()
    assert all(value.abs().max() > 0 for value in text.values())


def test_a_loss_that_is_no_number_ends_the_run_in_words(tables: dict[str, Any]) -> None:
    tables["stage"] = [{"kind": "iea", "steps": 3, "batch": 2, "clip": 0.0}]
    config = from_tables(tables)
    config = replace(config, stage=(replace(config.stage[0], lr=1e30),))  # more than a file may say
    with pytest.raises(TrainingError, match=r"no number at step 2.*face.*Lower lr"):
        train(config)
    kept = find_latest(Path(tables["out"]))
    assert kept is not None
    assert kept.name == "step-00000001"


def test_another_run_is_not_overwritten_and_not_continued(tables: dict[str, Any]) -> None:
    tables["stage"] = [{"kind": "iea", "steps": 1, "batch": 1}]
    train(from_tables(tables))
    with pytest.raises(TrainingError, match=r"holds a run already.*--resume"):
        train(from_tables(tables))
    with pytest.raises(TrainingError, match="another seed"):
        train(from_tables({**tables, "seed": 5}), resume=True)
    tables["stage"] = [{"kind": "iea", "steps": 1, "batch": 2}]
    with pytest.raises(TrainingError, match=r"another stage\[0\]"):
        train(from_tables(tables), resume=True)


def test_rates() -> None:
    stage = TrainingStage("iea", steps=10, warmup=2, schedule="cosine")
    rates = [rate(stage, step) for step in range(10)]
    assert rates[:3] == [1 / 3, 2 / 3, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert 0 < rates[9] < 0.05
