"""Regions over time in a WebUI: the sampler's denoiser tells when it was called and what it predicts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from dp_adapter.webui.job.scenes import progress_of

if TYPE_CHECKING:
    from dp_adapter.session.regions.preview_watch import Decode
    from dp_adapter.session.regions.tracker import Tracker
    from dp_adapter.webui.job.attach import Pass


class PreviewHooks(AbstractContextManager["PreviewHooks"]):
    """One pass: while it lasts, the tracker follows the pictures that the job's sampler makes.

    Args:
        p: the WebUI's processing object, its sampler made.
        inside: the adapter in the UNet, which knows how far the sampling is and listens to the person words.
        factor: of the schedule, at a progress.
    """

    def __init__(
        self,
        p: Any,
        tracker: Tracker,
        decode: Decode,
        inside: Pass,
        factor: Callable[[float], float],
    ) -> None:
        from dp_adapter.session.regions.preview_watch import PreviewWatch

        sampler = p.sampler
        denoiser = sampler.model_wrap_cfg

        def calls() -> int:
            # Known when the sampler runs; samplers of second order call twice a step.
            return getattr(denoiser, "total_steps", None) or len(progress_of(p))

        self._watch = PreviewWatch(tracker, decode, calls, inside.maps, inside.words.head, factor)
        self._stack = ExitStack()
        self._stack.enter_context(self._watch)

        def before(_module: Any, _args: Any) -> None:
            self._watch.before_call()

        def after(_module: Any, _args: Any, _output: Any) -> None:
            # What the host itself shows as the live preview, the same for samplers of sigmas and of timesteps.
            self._watch.after_call(sampler.last_latent, inside.progress)

        self._stack.callback(denoiser.register_forward_pre_hook(before).remove)
        self._stack.callback(denoiser.register_forward_hook(after).remove)

    def __exit__(self, *_: object) -> None:
        self._stack.close()
