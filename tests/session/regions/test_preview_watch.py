"""When previews are taken, and from which call on they hold: the same for every speed of the looking."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import numpy as np
import pytest
import torch

from dp_adapter.errors import CatalogError
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.session.regions.preview_watch import PreviewWatch
from dp_adapter.session.regions.tracker import PreviewLook, Tracker, TrackingPlan

LATENTS = torch.zeros(1, 4, 8, 8)


class Fake:
    """A tracker that only notes what happens to it, with one moment at 0.3."""

    wants_attention = False
    gate = None
    plan = TrackingPlan(())
    failure = ""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.said: list[str] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.looked = False

    def restart(self) -> None:
        self.said.append("restart")

    def is_due(self, progress: float) -> bool:
        due, self.looked = progress >= 0.3 and not self.looked, self.looked or progress >= 0.3
        return due

    def look(self, _pictures: Any, _progress: float) -> PreviewLook:
        self.threads.add(threading.current_thread().name)
        time.sleep(self.delay)
        if self.error:
            raise self.error
        return PreviewLook((), ())

    def apply(self, _look: PreviewLook) -> None:
        self.said.append("apply")

    def give_up(self, _progress: float, last: bool = False) -> None:
        pass

    def count_call(self, factor: float, pictures: int) -> None:
        pass


def decoded(_latents: torch.Tensor) -> list[Picture]:
    return [np.zeros((64, 64, 3), np.uint8)]


def run(fake: Fake, calls: int, decode: Any = decoded, beside: bool = False) -> tuple[list[str], PreviewWatch]:
    """Calls of a sampler at progress 0, 0.1, 0.2 …; what happened, in order."""
    with PreviewWatch(cast(Tracker, fake), decode, lambda: calls, beside=beside) as watch:
        for number in range(8):
            watch.before_call()
            fake.said.append(f"call {number}")
            watch.after_call(LATENTS, number / 10)
    return fake.said, watch


@pytest.mark.parametrize("delay", [0.0, 0.05])
@pytest.mark.parametrize("beside", [False, True])
def test_a_look_holds_from_a_fixed_call_on(delay: float, beside: bool) -> None:
    fake = Fake(delay)
    said, watch = run(fake, calls=20, beside=beside)
    assert said.index("apply") == said.index("call 5") - 1, "seen after call 3, looked for during call 4"
    assert said[0] == "restart" and said.count("apply") == 1 and watch.looks == 1 and not fake.failure


def test_with_few_steps_it_holds_at_once() -> None:
    said, _ = run(Fake(0.02), calls=6)
    assert said.index("apply") == said.index("call 4") - 1


def test_the_looking_has_a_thread_of_its_own() -> None:
    fake = Fake()
    run(fake, 20)
    assert len(fake.threads) == 1 and threading.current_thread().name not in fake.threads
    assert not [thread for thread in threading.enumerate() if thread.name in fake.threads], "it ends with the pass"


@pytest.mark.parametrize("beside", [False, True])
def test_the_decoder_runs_where_it_may(beside: bool) -> None:
    threads: set[str] = set()

    def decode(latents: torch.Tensor) -> list[Picture]:
        threads.add(threading.current_thread().name)
        return decoded(latents)

    fake = Fake()
    run(fake, 20, decode, beside)
    assert threads == (fake.threads if beside else {threading.current_thread().name})


@pytest.mark.parametrize("beside", [False, True])
def test_a_decoder_that_fails_is_told_and_not_asked_again(beside: bool) -> None:
    asked: list[int] = []

    def broken(_latents: torch.Tensor) -> Any:
        asked.append(1)
        raise RuntimeError("no such model")

    fake = Fake()
    said, _ = run(fake, 20, broken, beside)
    assert fake.failure == "RuntimeError: no such model" and len(asked) == 1 and "apply" not in said


def test_errors_of_the_looking() -> None:
    fake = Fake()
    fake.error = ValueError("odd")
    run(fake, 20)
    assert fake.failure == "ValueError: odd"
    fake = Fake()
    fake.error = CatalogError("The network is missing")
    with pytest.raises(CatalogError):
        run(fake, 20)


def test_a_pass_that_ends_early_leaves_nothing() -> None:
    fake = Fake(0.02)
    with pytest.raises(KeyboardInterrupt), PreviewWatch(cast(Tracker, fake), decoded, lambda: 20) as watch:
        watch.after_call(LATENTS, 0.5)
        raise KeyboardInterrupt
    assert "apply" not in fake.said and not [t for t in threading.enumerate() if t.name.startswith("dp-adapter-look")]
