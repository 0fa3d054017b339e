"""Text-only twins of a call's rows: for a strict text region, parts of the face that are left to the text, guidance."""

from __future__ import annotations

from contextlib import ExitStack

from torch import Tensor, nn

from dp_adapter.core import twins
from dp_adapter.core.injection import Injection
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.types import Site
from dp_adapter.hosts.attach.host_unet import HostUNet, UNetCall
from dp_adapter.hosts.attach.parts.part import Part
from dp_adapter.hosts.rows.regional_prompt_rows import require_whole


class TextTwins(Part):
    """Where a row follows its twin, its self-attention is the twin's."""

    def __init__(self, host: HostUNet, injection: Injection, cache: RegionCache) -> None:
        self._host, self._cache = host, cache
        self._follows = injection.follows_twins

    def register(self, stack: ExitStack) -> None:
        if self._follows:
            self._host.after_self_attention(stack, self._follow)

    def add_rows(self, call: UNetCall) -> UNetCall:
        return self._host.add_twins(call) if self._cache.twinned else call

    def leave(self, call: UNetCall, sample: Tensor) -> Tensor:
        step = call.step.without_references()
        return twins.mix_predictions(self._cache, step, sample) if step.twins else sample

    def _follow(self, site: Site, output: Tensor) -> Tensor:
        return twins.mix_self_attention(self._cache, site, self._host.checked_step(site, output), output)


class WholeRows(Part):
    """Refuses to add twins or photos where an extension gives the text attention a part of the rows."""

    def __init__(self, host: HostUNet, injection: Injection) -> None:
        self._host = host
        self._adds = injection.follows_twins or injection.uses_photo

    def register(self, stack: ExitStack) -> None:
        for site in self._host.sites if self._adds else ():
            to_q = self._host.attn2(site).get_submodule("to_q")
            stack.callback(to_q.register_forward_pre_hook(self._require).remove)

    def _require(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        call = self._host.running
        if call is not None and (call.step.twins or call.step.references):
            require_whole(call.step, args[0])
