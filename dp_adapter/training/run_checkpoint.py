"""Checkpoints of a run: files without code from which it can be resumed and ends with the same bits.

They hold no state of random numbers: every draw is a function of the seed, the stage, the step and the process.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch

from dp_adapter.errors import TrainingError
from dp_adapter.pickles import unpickle
from dp_adapter.settings.field_types import Number
from dp_adapter.training.config import Config, Count, Steps, Words, to_tables
from dp_adapter.training.damaged_files import tell_damage
from dp_adapter.training.toml_records import decode
from dp_adapter.whole_files import write_whole

FOLDER = "checkpoints"
_PROGRESS, _OPTIMIZER = "progress.json", "optimizer.pt"
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

    stage: Steps
    step: Steps
    total: Steps
    processes: Count
    started: Words
    seconds: Annotated[float, Number(0, 1e12, 1)]
    run: Mapping[str, Any]


def find_latest(out: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where there is none."""
    found = sorted(path for path in (out / FOLDER).glob("step-*") if (path / _PROGRESS).is_file())
    return found[-1] if found else None


def write(
    out: Path, progress: Progress, optimizer: Mapping[str, Any], weights: Callable[[Path], None], keep: int
) -> Path:
    """Writes a checkpoint and removes the oldest ones beyond ``keep``.

    Args:
        weights: writes ``adapter.safetensors`` and ``ema.safetensors`` into a folder.
    """
    target = out / FOLDER / f"step-{progress.total:08d}"
    with write_whole(target) as beside:
        beside.mkdir()
        weights(beside)
        torch.save(dict(optimizer), beside / _OPTIMIZER)
        (beside / _PROGRESS).write_text(json.dumps(asdict(progress), indent=2), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
    for old in sorted((out / FOLDER).glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def read_progress(folder: Path, config: Config, processes: int) -> Progress:
    """Reads a checkpoint's progress.

    Raises:
        TrainingError: it is damaged, or the run's configuration or processes have changed.
    """
    with _tell_damage(folder):
        progress = decode(Progress, json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))
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


def restore_optimizer(folder: Path, restore: Callable[[dict[str, Any]], None]) -> None:
    """Hands the optimiser's state to ``restore``, on the CPU; ``load_state_dict`` moves it to the weights' device.

    Raises:
        TrainingError: it is damaged, or of other weights.
    """
    with _tell_damage(folder):
        # copied, as what is read may be mapped from a file that is removed later
        restore(cast("dict[str, Any]", copy.deepcopy(unpickle(folder / _OPTIMIZER))))


def _tell_damage(folder: Path) -> AbstractContextManager[None]:
    return tell_damage(
        f"The checkpoint {folder} is damaged", "Delete this folder, and go on from the one before or begin anew."
    )


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
