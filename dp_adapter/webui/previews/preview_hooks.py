"""Regions over time in a WebUI: the sampler's denoiser tells when it was called and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from dp_adapter.webui.job.scenes import progress_of

if TYPE_CHECKING:
    from dp_adapter.hosts.attach.word_maps import WordMaps
    from dp_adapter.session.regions.preview_watch import Decode
    from dp_adapter.session.regions.tracker import Tracker
    from dp_adapter.webui.job.attach import AttachedPass


@contextmanager
def follow_previews(
    p: Any,
    tracker: Tracker,
    decode: Decode,
    attached: AttachedPass,
    maps: WordMaps | None,
    head: Callable[[int], bool],
    factor: Callable[[float], float],
) -> Generator[None]:
    """Inside the ``with``, one pass long, the tracker follows the pictures that the job's sampler makes.

    Args:
        p: the WebUI's processing object, its sampler made.
        attached: the adapter in the UNet, which knows how far the sampling is.
        maps: the attention to the prompts' person words; ``head`` says whether a picture's words mean a head.
        factor: of the schedule, at a progress.
    """
    from dp_adapter.session.regions.preview_watch import PreviewWatch

    sampler = p.sampler
    denoiser = sampler.model_wrap_cfg

    def calls() -> int:
        # Known when the sampler runs; samplers of second order call twice a step.
        return getattr(denoiser, "total_steps", None) or len(progress_of(p))

    with PreviewWatch(tracker, decode, calls, maps, head, factor) as watch, ExitStack() as stack:

        def before(_module: Any, _args: Any) -> None:
            watch.before_call()

        def after(_module: Any, _args: Any, _output: Any) -> None:
            # What the host itself shows as the live preview, the same for samplers of sigmas and of timesteps.
            watch.after_call(sampler.last_latent, attached.progress)

        stack.callback(denoiser.register_forward_pre_hook(before).remove)
        stack.callback(denoiser.register_forward_hook(after).remove)
        yield
