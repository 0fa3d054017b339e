"""Makes the demo's pictures: every shot once, several at a time, through the same code as everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import torch

from dp_adapter.demo.shots import GUIDANCE, SIDE, Shot
from dp_adapter.generation import Generation, Result, generate
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline
from dp_adapter.session import Session

WORKERS = 2
Progress = Callable[[int, int, Shot], None]


@dataclass(frozen=True, eq=False)
class FinishedShot:
    """A shot with its picture."""

    shot: Shot
    generation: Generation

    @property
    def result(self) -> Result:
        return self.generation.results[0]


class DemoPictures:
    """Workers with a pipeline and a session of their own, so that none sees another's adapter.

    Networks this small gain little from a second thread, and lose much where another program wants it: so each
    worker computes with one.

    Args:
        base: a model file or folder.

    Raises:
        HostError: the base cannot be loaded.
    """

    def __init__(self, base: Path, workers: int = WORKERS) -> None:
        self._free: SimpleQueue[tuple[Session, Pipeline]] = SimpleQueue()
        self._workers = workers
        for _ in range(workers):
            session = Session([base.parent], paths_allowed=True)
            self._free.put((session, load_pipeline.load(base, device="cpu", dtype="float32")))

    def make(self, shots: Iterable[Shot], steps: int, progress: Progress) -> dict[Shot, FinishedShot]:
        """Makes every shot once; equal ones share a picture.

        Args:
            progress: called after each with the number that are done, of all, and the shot.

        Raises:
            DPAdapterError: the first that a shot ends with; the others are not begun.
        """
        wanted = list(dict.fromkeys(shots))
        made: dict[Shot, FinishedShot] = {}
        pool = ThreadPoolExecutor(self._workers, "demo", partial(torch.set_num_threads, 1))
        try:
            for done, future in enumerate(as_completed([pool.submit(self._shoot, s, steps) for s in wanted]), 1):
                one = future.result()
                made[one.shot] = one
                progress(done, len(wanted), one.shot)
        finally:
            pool.shutdown(cancel_futures=True)
        return made

    def _shoot(self, shot: Shot, steps: int) -> FinishedShot:
        session, pipeline = self._free.get()
        try:
            job = DiffusersJob(shot.prompt, width=SIDE, height=SIDE, steps=steps, guidance=GUIDANCE, seed=shot.seed)
            return FinishedShot(shot, generate(session, pipeline, shot.settings, job))
        finally:
            self._free.put((session, pipeline))
