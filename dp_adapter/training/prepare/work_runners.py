"""One work function, run here, in processes of this machine, or by Ray on many."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeAlias

from dp_adapter.errors import DPAdapterError, MissingDependencyError
from dp_adapter.training.prepare.picture_result import PictureResult, Task

Work: TypeAlias = "Callable[[Task], PictureResult]"
Done: TypeAlias = "tuple[str, PictureResult]"
Runner: TypeAlias = "Callable[[Work, Iterable[Task]], Iterator[Done]]"
"""Gives the digest and outcome of each task, in any order; an error of the work function ends it."""

AHEAD = 3  # tasks for each worker that are read before they are needed: their files are in memory


def here(work: Work, tasks: Iterable[Task]) -> Iterator[Done]:
    """In this process, one after another."""
    for task in tasks:
        yield task.digest, work(task)


def in_processes(jobs: int) -> Runner:
    """In ``jobs`` processes of this machine; they are started afresh (spawn), as Windows and macOS do it."""

    def run(work: Work, tasks: Iterable[Task]) -> Iterator[Done]:
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_leave_interrupts)
        waiting: dict[Future[PictureResult], str] = {}
        try:
            for task in tasks:
                waiting[pool.submit(work, task)] = task.digest
                if len(waiting) >= AHEAD * jobs:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        except BrokenProcessPool:
            raise DPAdapterError(
                "A worker process ended without a word, perhaps for lack of memory",
                f"Run the same command again with fewer --jobs than {jobs}: it goes on where it stopped.",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return run


def _leave_interrupts() -> None:
    """Ctrl+C reaches the whole group of processes; only the one that has the pool answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _finished(waiting: dict[Future[PictureResult], str]) -> Iterator[Done]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


def on_ray(address: str | None) -> Runner:
    """As Ray tasks of one CPU each, on the cluster at ``address``, or on this machine when it is None.

    Files travel with the tasks and results with their answers, so that no machine but this one needs the folder.

    Raises:
        MissingDependencyError: ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("ray", "Preparing on many machines (--ray)", "ray") from None

    def run(work: Work, tasks: Iterable[Task]) -> Iterator[Done]:
        started = not ray.is_initialized()
        if started:
            ray.init(address=address, log_to_driver=False)
        try:
            remote = ray.remote(num_cpus=1)(_called)
            ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            function = ray.put(work)
            waiting: dict[ray.ObjectRef, str] = {}
            for task in tasks:
                waiting[remote.remote(function, task)] = task.digest
                if len(waiting) >= ahead:
                    yield from answered(waiting)
            while waiting:
                yield from answered(waiting)
        finally:
            if started:
                ray.shutdown()

    def answered(waiting: dict[ray.ObjectRef, str]) -> Iterator[Done]:
        ready, _ = ray.wait(list(waiting))
        for reference in ready:
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, DPAdapterError) else error from None
            yield waiting.pop(reference), outcome

    return run


def _called(work: Work, task: Task) -> PictureResult:
    return work(task)


def bound(function: Callable[..., PictureResult], *arguments: object) -> Work:
    """The work function with all arguments but the task, so that it can be sent to another process."""
    return functools.partial(_with_task_first, function, arguments)


def _with_task_first(
    function: Callable[..., PictureResult], arguments: tuple[object, ...], task: Task
) -> PictureResult:
    return function(task, *arguments)
