"""One pass of sampling: all that is put into the host for it, and taken out of it together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dp_adapter.hosts.prompts.person_words import FoundWords
from dp_adapter.webui.host import compat
from dp_adapter.webui.job import identity_net_a1111, identity_net_forge
from dp_adapter.webui.job.attach import AttachedPass, attach
from dp_adapter.webui.previews.live_overlay import show_regions
from dp_adapter.webui.previews.preview_hooks import follow_previews
from dp_adapter.webui.prompts import word_positions

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.core.injection import Injection
    from dp_adapter.core.types import Grid, Step
    from dp_adapter.session import Prepared
    from dp_adapter.session.assembly.identity_net import Net
    from dp_adapter.session.regions.preview_watch import Decode
    from dp_adapter.webui.job.comments import JobComments


@dataclass
class ActedCalls:
    """What the identities had to do with the calls of the UNet so far.

    Attributes:
        called: whether there was one.
        scheduled: whether one of them lay in the schedule.
        acted: whether an identity had a region in one of these.
    """

    called: bool = False
    scheduled: bool = False
    acted: bool = False

    def add(self, injection: Injection, progress: float) -> None:
        """The call at this progress is over; what has its own schedule, or none, is taken to act in every call."""
        self.called = True
        visible = [identity for identity in injection.identities if identity.visible]
        always = any(identity.uses_photo or identity.on_text is not None for identity in visible)
        scheduled = always or injection.schedule.at(progress) != 0
        self.scheduled |= scheduled
        if scheduled and not self.acted:
            self.acted = any(identity.region is None or bool(identity.region.any()) for identity in visible)


class SamplingPass:
    """One pass: until it is closed, the adapter and what follows the pictures are in the host.

    Args:
        p: the WebUI's processing object, its sampler made.
        prepared: an injection that is active, and what goes with it.
        latent: size of the latents; batch: how many pictures are sampled together.
        decode: latents of predicted pictures -> pictures, for regions that follow faces.
        overlay: whether the live preview shows the regions.
        acted: takes what the identities do in the calls.

    Raises:
        DPAdapterError: the identity cannot act in this pass; then nothing is in the host.
    """

    def __init__(
        self,
        p: Any,
        prepared: Prepared,
        latent: Grid,
        batch: int,
        *,
        decode: Decode,
        overlay: bool,
        acted: ActedCalls,
        comments: JobComments,
    ) -> None:
        from dp_adapter.hosts.attach.word_maps import WordMaps

        self._prepared = prepared
        self._acted = acted
        self._comments = comments
        self._progress: list[float] = []  # at the calls that are over
        self._called = False
        self._attached: AttachedPass | None = None
        injection, tracker = prepared.injection, prepared.tracker
        with ExitStack() as stack:
            if prepared.net is not None:
                stack.enter_context(_add_identity_net(p, prepared.net, self._call))
            spoken = word_positions.find_spoken(p, prepared.prompt_persons) if prepared.prompt_persons else None
            words = self._person_words(p)
            maps = WordMaps(words.tokens, latent) if words.texts else None
            prompts = words.prompts if spoken is None else spoken.prompts
            attached = stack.enter_context(attach(p, injection, latent, batch, prompts, maps, spoken))
            stack.callback(self._tell_what_was_done)
            if tracker is not None:
                stack.enter_context(
                    follow_previews(p, tracker, decode, attached, maps, words.head, injection.schedule.at)
                )
            if overlay:
                stack.enter_context(show_regions(lambda: regions_of(injection), batch))
            self._attached = attached
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Takes everything out again; what fails in one part keeps no other part in the host."""
        self._stack.close()

    def before_step(self, params: Any) -> None:
        """The denoiser is about to call the UNet; see ``AttachedPass``."""
        assert self._attached is not None
        self._finish_call()
        self._called = True
        if note := self._attached.before_step(params):
            self._comments.add(note)

    def require_acted(self) -> None:
        """To be called when everything was sampled: raises HostError where the identity had to act and could not."""
        assert self._attached is not None
        self._attached.require_acted()

    def _finish_call(self) -> None:
        if self._called and self._attached is not None:
            self._progress.append(self._attached.progress)
            self._acted.add(self._prepared.injection, self._attached.progress)
            self._called = False

    def _tell_what_was_done(self) -> None:
        from dp_adapter.session.explain import explain_inaction

        self._finish_call()
        tracker = self._prepared.tracker
        notes = explain_inaction(self._prepared.injection, self._progress) or (
            () if tracker is None else tracker.notes()
        )
        for note in notes:
            self._comments.add(note)

    def _person_words(self, p: Any) -> FoundWords:
        """The person words to listen to; none where no region waits for them."""
        tracker = self._prepared.tracker
        if tracker is None or not tracker.wants_attention:
            return FoundWords(())
        return word_positions.find_words(p, tracker.plan.words)

    def _call(self) -> Step | None:
        return None if self._attached is None else self._attached.call


def regions_of(injection: Injection) -> dict[int, Tensor | None]:
    """By identity, where it acts now: masks [S, h, w]; None is the whole picture."""
    return {number: identity.region for number, identity in enumerate(injection.identities)}


def _add_identity_net(p: Any, net: Net, call: Callable[[], Step | None]) -> AbstractContextManager[None]:
    if compat.is_forge():
        return identity_net_forge.add_controls(p, net)
    return identity_net_a1111.add_controls(p, net, call)
