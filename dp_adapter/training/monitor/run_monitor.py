"""Monitors a run: curves and sample grids in TensorBoard, history and pictures on disk, the HTML report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dp_adapter.core.adapter import Adapter
from dp_adapter.errors import MissingDependencyError
from dp_adapter.training.base_model import FrozenBase
from dp_adapter.training.config import Config, TrainingStage
from dp_adapter.training.data.shards import Shards
from dp_adapter.training.monitor import run_report
from dp_adapter.training.monitor.sample_grid import draw_grid
from dp_adapter.training.parallel.devices import peak_memory
from dp_adapter.whole_files import write_whole

HISTORY = "history.jsonl"


class RunMonitor:
    """The monitor of one process; only that of the main process writes.

    Args:
        log: is called with the progress in sentences.
        all_processes: whether the base model is spread over the processes.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Any,
        base: FrozenBase,
        shards: Shards,
        log: Callable[[str], None],
        all_processes: bool = False,
    ) -> None:
        self.config, self._base, self._shards, self._log = config, base, shards, log
        self._accelerator, self._all_processes = accelerator, all_processes
        self._is_main: bool = accelerator.is_main_process
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._summary_writer: Any = None
        self._before = (0, 0.0)

    def add_losses(self, terms: Mapping[str, Tensor]) -> None:
        """Adds one pass's losses, without waiting for the device."""
        for name, value in terms.items():
            sum_so_far = self._sums.get(name)
            self._sums[name] = value.detach().float() if sum_so_far is None else sum_so_far + value.detach().float()
            self._counts[name] = self._counts.get(name, 0) + 1

    def report_losses(self, stage: TrainingStage, number: int, total: int, rate: float, seconds: float) -> str:
        """Writes the means since the last time.

        Returns:
            Names of the losses that are no numbers, the same in every process; empty when all are.
        """
        if not self._sums:
            return ""
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        if self._accelerator.num_processes > 1:
            means = self._accelerator.reduce(means, "mean")
        values = dict(zip(names, [float(value) for value in means.cpu()], strict=True))
        self._sums, self._counts = {}, {}
        not_finite = ", ".join(name for name, value in values.items() if not np.isfinite(value))
        if self._is_main and not not_finite:
            self._write(stage, number, total, rate, seconds, values)
        return not_finite

    def _write(
        self, stage: TrainingStage, number: int, total: int, rate: float, seconds: float, values: Mapping[str, float]
    ) -> None:
        steps, spent = total - self._before[0], seconds - self._before[1]
        pace = spent / max(steps, 1)
        self._before = (total, seconds)
        line = {"step": total, "stage": number, "kind": stage.kind, "lr": stage.lr * rate, "seconds": seconds}
        with (self.config.folder / HISTORY).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "pace": pace, "losses": values}) + "\n")
        for name, value in values.items():
            self._writer().add_scalar(f"{stage.kind}/{name}", value, total)
        self._writer().add_scalar("lr", stage.lr * rate, total)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        left = (self.config.steps - total) * pace / 60
        self._log(f"{stage.kind} {total}/{self.config.steps}  {shown}  {pace:.2f} s a step, {left:.0f} min left")

    def _writer(self) -> Any:
        if self._summary_writer is None:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError("tensorboard", "Showing the training", "train") from error
            purge = self._before[0] + 1 if self._before[0] else None
            self._summary_writer = SummaryWriter(str(self.config.folder / "tensorboard"), purge_step=purge)
        return self._summary_writer

    def sample_grid(self, adapter: Adapter, total: int) -> None:
        """Draws a grid with the present weights, as the extension makes pictures.

        Where the UNet is spread, every process has to take part; the main one writes.
        """
        if self.config.watch.samples == 0 or not (self._is_main or self._all_processes):
            return
        from PIL import Image

        picture = draw_grid(self._base, adapter, self._shards, self.config)
        if not self._is_main:
            return
        folder = self.config.folder / "samples"
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"step-{total:08d}.png")
        self._writer().add_image("samples", picture, total, dataformats="HWC")

    def rewind(self, total: int) -> None:
        """Forgets what was written after a step, from which the run goes on."""
        path = self.config.folder / HISTORY
        if not self._is_main or not path.is_file():
            return
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= total]
        with write_whole(path) as beside:
            beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        self._before = (total, json.loads(lines[-1])["seconds"] if lines else 0.0)

    def close(self) -> None:
        """Closes TensorBoard's files."""
        if self._summary_writer is not None:
            self._summary_writer.close()

    def write_report(self) -> None:
        """Writes ``report.html`` of the run so far."""
        if not self._is_main:
            return
        history = self.config.folder / HISTORY
        text = history.read_text(encoding="utf-8") if history.is_file() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        facts = {
            "base model": self._base.name,
            "samples": str(len(self._shards)),
            "people": str(len(self._shards.of_person)),
            "device": str(self._accelerator.device),
            "processes": str(self._accelerator.num_processes),
            "torch": torch.__version__,
            "peak memory": f"{peak_memory(self._accelerator.device) / 2**30:.2f} GiB",
        }
        run_report.write(self.config, lines, facts)
