"""Ending a run between two steps, because the user or the system asks for it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch


class TrainingStopped(Exception):
    """The user or the system ended the run; a checkpoint was written."""


@contextmanager
def catch_stop_signals() -> Generator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM set a flag that is read between steps; the second Ctrl-C ends the program at once."""
    asked = False
    before: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread, where Python has no signals
        before.clear()
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def any_process(accelerator: Any, stop: bool) -> bool:
    """Whether ``stop`` is true in any process: all of them must save at the same step."""
    if accelerator.num_processes == 1:
        return stop
    flag = torch.tensor(float(stop), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)
