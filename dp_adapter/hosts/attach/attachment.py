"""An injection in a UNet for the duration of a ``with``: a list of parts, one a feature, the same in every host."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.text.text_side import PersonWords
from dp_adapter.core.types import Step
from dp_adapter.hosts.attach.adapter_fit import require_fit
from dp_adapter.hosts.attach.bypass_check import BypassCheck
from dp_adapter.hosts.attach.host_unet import HostUNet, UNetCall
from dp_adapter.hosts.attach.parts.checkpoint_lora import CheckpointLora
from dp_adapter.hosts.attach.parts.identity_attention import FoldedAttention, GatedAttention, PlainAttention
from dp_adapter.hosts.attach.parts.part import Part
from dp_adapter.hosts.attach.parts.photo_rows import PhotoRows
from dp_adapter.hosts.attach.parts.res_adapter import ResAdapterPart
from dp_adapter.hosts.attach.parts.text_twins import TextTwins, WholeRows
from dp_adapter.hosts.attach.torch_compile import uncompiled
from dp_adapter.hosts.attach.word_maps import WordMaps, WordMapsPart


class Attachment:
    """The injection of one ``with``.

    Attributes:
        bypass: the sampler's calls of the UNet, and whether the identities act in them where they have to.
        progress: of the latest of these calls.
        call: the call of the UNet that runs, also where nothing acts in it; None outside, or where its rows are not
            known.
        pictures: [B, c, H, W], the step's latents if they were announced.
    """

    def __init__(self) -> None:
        self.bypass = BypassCheck()
        self.progress = 0.0
        self.call: Step | None = None
        self.pictures: Tensor | None = None

    def announce(self, pictures: Tensor) -> None:
        """To be called at each step with what the denoiser gets, so that Forge's tiles are found in it."""
        self.pictures = pictures

    def register(
        self,
        stack: ExitStack,
        host: HostUNet,
        injection: Injection,
        maps: WordMaps | None = None,
        words: PersonWords | None = None,
    ) -> None:
        """Puts everything into the UNet until ``stack`` closes.

        Raises:
            HostError: an adapter's shapes do not fit, a photo cannot be shown, or hooks would not be reached.
        """
        for identity in injection.identities:
            require_fit(host.sites, identity.adapter, lambda site: host.widths[site.index])
        self._host = host
        self._cache = RegionCache(injection)
        self._parts = self._list_parts(injection, maps, words)
        stack.enter_context(uncompiled(host.unet))
        host.register(stack)
        for part in self._parts:
            part.register(stack)
        stack.callback(host.unet.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        # In front, so that of two attachments the one that entered last leaves first.
        stack.callback(host.unet.register_forward_hook(self._leave, prepend=True).remove)

    def _list_parts(self, injection: Injection, maps: WordMaps | None, words: PersonWords | None) -> list[Part]:
        """In the order in which they add rows; they take them off in the other."""
        host, shared = self._host, (self._host, injection, self._cache)
        if injection.gated:
            attention = GatedAttention(*shared, self.bypass)
        elif injection.folded:
            attention = FoldedAttention(*shared, self.bypass)
        else:
            attention = PlainAttention(*shared, self.bypass, words)
        parts: list[Part] = [CheckpointLora(host, injection.lora), ResAdapterPart(host, injection.companion)]
        parts += [] if maps is None else [WordMapsPart(host, maps)]
        parts += [attention, TextTwins(*shared), PhotoRows(*shared, self.bypass), WholeRows(host, injection)]
        return parts

    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._reset()  # stays so if the next line raises
        call = self._host.read_call(args, kwargs)
        if call is None:
            return None
        if self._cache.guidance is not None:
            call = replace(call, step=call.step.conditional())
        self.progress, self.call = call.step.progress, call.step
        self.bypass.enter()
        # Without an identity at work twins would say nothing new, cost a row, and round differently.
        acts = self._cache.enter(call.step) and any(part.acts(call.step) for part in self._parts)
        if acts:
            if any(row.kind != "text" for row in call.step.rows):
                self.bypass.expect()
            for part in self._parts:
                call = part.add_rows(call)
            self.call, self._host.running = call.step, call
        for part in self._parts:
            part.enter(call.step)
        return self._host.arguments(call) if acts else None

    def _reset(self) -> None:
        self.call = self._host.running = None
        for part in self._parts:
            part.enter(None)

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Takes the rows off that were added."""
        call = self._host.running
        self._reset()
        if call is None:
            return output
        self.bypass.leave()
        if isinstance(output, Tensor):
            return self._without_added(call, output)
        if isinstance(output, tuple):
            first, *rest = cast("tuple[Any, ...]", output)
            return (self._without_added(call, first), *rest)
        output.sample = self._without_added(call, output.sample)
        return output

    def _without_added(self, call: UNetCall, sample: Tensor) -> Tensor:
        for part in reversed(self._parts):
            sample = part.leave(call, sample)
        return sample


@contextmanager
def attached(
    injection: Injection,
    host_of: Callable[[Attachment, Injection], HostUNet],
    maps: WordMaps | None,
    words: PersonWords | None,
) -> Generator[Attachment]:
    """Inside the ``with``, a UNet carries an injection; one that changes nothing does not even look at it.

    Args:
        host_of: the UNet in its host's hands, for this attachment and what of the injection is not idle.
        maps: sees the text attention meanwhile, also where the identity has no place yet.
        words: where the persons' words stand, for identities on the text side.

    Raises:
        HostError: as ``Attachment.register``. At the end, or out of a call: the UNet was called past the layers in
            which the identity had to act.
    """
    attachment = Attachment()
    with ExitStack() as stack:
        if injection.active:
            visible = injection.drop_idle()
            attachment.register(stack, host_of(attachment, visible), visible, maps, words)
        yield attachment
        attachment.bypass.require()
