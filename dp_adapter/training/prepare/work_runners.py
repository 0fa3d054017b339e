"""Runs one work function over many pictures: in this process, in processes of this machine, or by Ray on many."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeAlias

from dp_adapter.errors import DPAdapterError, MissingDependencyError
from dp_adapter.training.prepare.picture_result import PictureResult, Task

WorkFunction: TypeAlias = "Callable[[Task], PictureResult]"
DigestAndResult: TypeAlias = "tuple[str, PictureResult]"
Runner: TypeAlias = "Callable[[WorkFunction, Iterable[Task]], Iterator[DigestAndResult]]"
"""Yields the digest and result of each task, in any order; an error of the work function ends it."""

AHEAD = 3  # tasks for each worker that are read before they are needed: their files are in memory


def run_here(work: WorkFunction, tasks: Iterable[Task]) -> Iterator[DigestAndResult]:
    """In this process, one after another."""
    for task in tasks:
        yield task.digest, work(task)


def run_in_processes(jobs: int) -> Runner:
    """In ``jobs`` processes of this machine; each starts with a fresh interpreter (spawn), as on Windows and macOS."""

    def run(work: WorkFunction, tasks: Iterable[Task]) -> Iterator[DigestAndResult]:
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_ignore_interrupts)
        waiting: dict[Future[PictureResult], str] = {}
        try:
            for task in tasks:
                waiting[pool.submit(work, task)] = task.digest
                if len(waiting) >= AHEAD * jobs:
                    yield from _collect_finished(waiting)
            while waiting:
                yield from _collect_finished(waiting)
        except BrokenProcessPool:
            raise DPAdapterError(
                "A worker process ended without a word, perhaps for lack of memory",
                f"Run the same command again with fewer --jobs than {jobs}: it goes on where it stopped.",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return run


def _ignore_interrupts() -> None:
    """Ctrl+C reaches the whole group of processes, but only the one that has the pool shall end them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collect_finished(waiting: dict[Future[PictureResult], str]) -> Iterator[DigestAndResult]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


def run_on_ray(address: str | None) -> Runner:
    """As Ray tasks of one CPU each, on the cluster at ``address``, or on this machine when it is None.

    Files are sent with the tasks and results come back, so that no machine but this one needs the folder.

    Raises:
        MissingDependencyError: ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a cluster that is started here reports to its makers
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("ray", "Preparing on many machines (--ray)", "ray") from None

    def run(work: WorkFunction, tasks: Iterable[Task]) -> Iterator[DigestAndResult]:
        started = not ray.is_initialized()
        if started:
            ray.init(address=address, log_to_driver=False)
        try:
            remote = ray.remote(num_cpus=1)(_call)
            ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            function = ray.put(work)
            waiting: dict[ray.ObjectRef, str] = {}
            for task in tasks:
                waiting[remote.remote(function, task)] = task.digest
                if len(waiting) >= ahead:
                    yield from collect(waiting)
            while waiting:
                yield from collect(waiting)
        finally:
            if started:
                ray.shutdown()

    def collect(waiting: dict[ray.ObjectRef, str]) -> Iterator[DigestAndResult]:
        ready, _ = ray.wait(list(waiting))
        for reference in ready:
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, DPAdapterError) else error from None
            yield waiting.pop(reference), result

    return run


def _call(work: WorkFunction, task: Task) -> PictureResult:
    return work(task)


def bind_arguments(function: Callable[..., PictureResult], *arguments: object) -> WorkFunction:
    """Binds all arguments of a work function but the task; the outcome can be sent to another process."""
    return functools.partial(_call_with_task, function, arguments)


def _call_with_task(function: Callable[..., PictureResult], arguments: tuple[object, ...], task: Task) -> PictureResult:
    return function(task, *arguments)
