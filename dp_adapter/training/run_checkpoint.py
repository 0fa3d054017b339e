"""Checkpoints of a run: files without code from which it can be resumed and ends with the same bits.

They hold no state of random numbers: every draw is a function of the seed, the stage, the step and the process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dp_adapter.errors import TrainingError
from dp_adapter.training.config import Config, to_tables

FOLDER = "checkpoints"
_MAY_CHANGE = ("out", "watch", "device")  # keys that a resumed run may change


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        stage: number of the next step's stage; step: steps done in it; total: steps done in all.
        processes: how many there were: the order of the samples depends on it.
        started: date and time of the run's beginning; seconds: spent on it so far.
        run: the configuration.
    """

    stage: int
    step: int
    total: int
    processes: int
    started: str
    seconds: float
    run: Mapping[str, Any]


def find_latest(out: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where there is none."""
    found = sorted(path for path in (out / FOLDER).glob("step-*") if (path / "progress.json").is_file())
    return found[-1] if found else None


def write(
    out: Path, progress: Progress, optimizer: Mapping[str, Any], weights: Callable[[Path], None], keep: int
) -> Path:
    """Writes a checkpoint and removes the oldest ones beyond ``keep``.

    Args:
        weights: writes ``adapter.safetensors`` and ``ema.safetensors`` into a folder.
    """
    target = out / FOLDER / f"step-{progress.total:08d}"
    partial = target.with_name("partial")
    for folder in (partial, target):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    weights(partial)
    torch.save(dict(optimizer), partial / "optimizer.pt")
    (partial / "progress.json").write_text(json.dumps(asdict(progress), indent=2), encoding="utf-8")
    partial.rename(target)  # a checkpoint is there as a whole or not at all
    for old in sorted((out / FOLDER).glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def read_progress(folder: Path, config: Config, processes: int) -> Progress:
    """Reads a checkpoint's progress. Raises TrainingError where the run's configuration or processes have changed."""
    values = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    progress = Progress(**values)
    changed = _find_change(progress, to_tables(config))
    if changed:
        raise TrainingError(
            f"The run in {folder.parent.parent} was begun with another {changed}",
            f"Set {changed} back, or choose another out for a new run.",
        )
    if progress.processes != processes:
        raise TrainingError(
            f"The run was begun with {progress.processes} processes, now there are {processes}",
            "Start as many: which samples a process sees depends on it.",
        )
    return progress


def read_optimizer(folder: Path) -> dict[str, Any]:
    """Reads the optimiser's state onto the CPU; ``load_state_dict`` moves it to the weights' device."""
    loaded = torch.serialization.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    return cast("dict[str, Any]", loaded)


def _find_change(progress: Progress, now: Mapping[str, Any]) -> str:
    """The first key that must not change but has, empty for none. Later stages may change, and this one's length."""
    before = json.loads(json.dumps(progress.run))
    after = json.loads(json.dumps(now))
    for key, value in before.items():
        if key != "stage" and key not in _MAY_CHANGE and value != after.get(key):
            return key
    for number, stage in enumerate(before["stage"][: progress.stage + 1]):
        other = dict(after["stage"][number]) if number < len(after["stage"]) else {}
        if number == progress.stage and stage["schedule"] == "constant":
            other["steps"] = stage["steps"]
        if stage != other:
            return f"stage[{number}]"
    return ""
