"""Drives a tracker from a sampler: the looking runs beside the sampling, and the picture is always the same.

A preview is decoded after the call of the UNet that reached a moment, by the sampler's thread unless the decoder may
run beside it. Faces are looked for in a thread of its own while the next call runs; what was found holds from a fixed
call on, for which the sampler waits if it must. So the picture depends on the seed alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

from torch import Tensor

from dp_adapter.errors import DPAdapterError
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.session.regions.tracker import PreviewLook, Tracker

Decode = Callable[[Tensor], Sequence[Picture]]


class Attention(Protocol):
    """Whoever listens to the text attention, such as ``hosts.attach.word_maps.WordMaps``."""

    def latest(self) -> Tensor | None:
        """The person words' maps so far, [S, h, w]."""
        ...

    def stop(self) -> None:
        """Nobody asks any more."""
        ...


_FEW = 10  # calls below which a look may not lag behind: with few steps each one decides much
_log = logging.getLogger("dp_adapter")


class PreviewWatch:
    """One pass of sampling.

    Args:
        decode: latents [S, c, h, w] of the predicted pictures -> pictures.
        calls: about how often the sampler will call the denoiser, asked before the first call.
        factor: of the schedule, at a progress.
        beside: whether ``decode`` may be called by another thread while the denoiser runs.
        attention: to the prompt's person words, if anybody listens; ``head`` says whether a picture's words mean a
            head and not a body.

    Attributes:
        looks: how many were taken.
    """

    def __init__(
        self,
        tracker: Tracker,
        decode: Decode,
        calls: Callable[[], int],
        attention: Attention | None = None,
        head: Callable[[int], bool] = lambda _picture: False,
        factor: Callable[[float], float] = lambda _progress: 1.0,
        beside: bool = False,
    ) -> None:
        self._tracker = tracker
        self._decode = decode
        self._beside = beside
        self._count = calls
        self._expected_calls = 1
        self._factor = factor
        self._attention = attention if tracker.plan.attention else None
        self._head = head
        self._calls = 0
        self._progress = 0.0
        self._pending: tuple[int, Future[PreviewLook]] | None = None
        self._worker = ThreadPoolExecutor(1, "dp-adapter-look")
        self.looks = 0
        tracker.restart()

    def before_call(self) -> None:
        """The denoiser is about to be called: what was found holds from here on."""
        if not self._calls:
            self._expected_calls = max(self._count(), 1)
        if self._pending is not None and self._calls >= self._pending[0]:
            self._finish(self._pending[1])
        if self._pending is None:
            # By calls as well: with few steps the noise level may never get so far before the last one.
            last = self._calls == self._expected_calls - 1
            self._tracker.give_up(max(self._progress, self._calls / self._expected_calls), last)

    def after_call(self, predicted: Tensor, progress: float) -> None:
        """The denoiser has been called.

        Args:
            predicted: latents [S, c, h, w] of the picture as it is predicted now (x0).
        """
        self._calls += 1
        self._progress = progress
        self._tracker.count_call(self._factor(progress), len(predicted))
        if self._tracker.gate is not None:
            self._tracker.follow(predicted, progress)
        if self._attention is not None:
            self._listen(self._attention)
        if self._pending is None and not self._tracker.failure and self._tracker.is_due(progress):
            self._start(predicted, progress)

    def _listen(self, attention: Attention) -> None:
        if not self._tracker.wants_attention:
            attention.stop()
            self._attention = None
        elif (maps := attention.latest()) is not None:
            self._tracker.attend(maps, self._head)

    def _finish(self, look: Future[PreviewLook]) -> None:
        self._pending = None
        try:
            self._tracker.apply(look.result())
        except DPAdapterError:
            raise
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        _log.warning("A preview could not be decoded or searched", exc_info=error)
        self._tracker.failure = f"{type(error).__name__}: {error}"

    def _start(self, predicted: Tensor, progress: float) -> None:
        if self._beside:
            future = self._worker.submit(lambda: self._tracker.look(self._decode(predicted), progress))
        else:
            try:
                pictures = self._decode(predicted)
            except Exception as error:  # in a decoder of the host's: the picture can do without it
                self._fail(error)
                return
            future = self._worker.submit(self._tracker.look, pictures, progress)
        self.looks += 1
        self._pending = self._calls + (1 if self._expected_calls >= _FEW else 0), future

    def __enter__(self) -> PreviewWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pending = None
        self._worker.shutdown(wait=True, cancel_futures=True)
