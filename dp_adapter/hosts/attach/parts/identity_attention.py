"""The identities at every text attention: folded behind it, beside its text attention, or before it (FACT).

Shapes: R rows, N positions, C hidden channels, I inner channels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.pathways import Captured, SitePathways
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.text.site_text import SiteText
from dp_adapter.core.text.text_side import PersonWords, TextContexts
from dp_adapter.core.types import Site, Step
from dp_adapter.hosts.attach.bypass_check import BypassCheck
from dp_adapter.hosts.attach.host_unet import HostUNet
from dp_adapter.hosts.attach.parts.part import Part
from dp_adapter.hosts.rows.regional_prompt_rows import AttentionInputs, step_inside


class IdentityAttention(Part):
    """What its three forms share: the pathways of every site."""

    _contexts: TextContexts | None = None

    def __init__(self, host: HostUNet, injection: Injection, cache: RegionCache, bypass: BypassCheck) -> None:
        self._host, self._injection, self._bypass = host, injection, bypass
        self._pathways = [self._pathways_at(site, cache) for site in host.sites]

    def register(self, stack: ExitStack) -> None:
        for site, pathways in zip(self._host.sites, self._pathways, strict=True):
            _follow_loads(stack, self._host.attn2(site), pathways)

    def acts(self, step: Step) -> bool:
        return any(pathways.acts(step) for pathways in self._pathways)

    def _pathways_at(self, site: Site, cache: RegionCache) -> SitePathways:
        to_q, to_out, to_k, to_v = (self._host.attn2(site).get_submodule(name) for name in _LINEAR)
        text = None if self._contexts is None else SiteText(self._contexts, site.heads, to_k, to_v)
        return SitePathways(self._injection, site, cache, to_q, to_out, to_k, text)

    def _note_acting(self, site: Site) -> None:
        """A site runs: whether an identity acts there."""
        if not self._bypass.acted and self._host.running is not None:
            self._bypass.acted = self._pathways[site.index].acts(self._host.running.step)


class AttentionQueries:
    """The host's own q, for the half-folded form: what ``to_q`` made of just what the attention got, if anything.

    An extension that calls ``to_q`` with other rows (prompts by region, halves of the rows) leaves none, and what is
    needed is computed anew.
    """

    def __init__(self) -> None:
        self._hidden_states: Tensor | None = None
        self._q: Tensor | None = None

    def listen(self, stack: ExitStack, to_q: nn.Module) -> None:
        """Listens to one layer until ``stack`` closes."""
        stack.callback(to_q.register_forward_hook(self._take).remove)

    def enter(self, hidden_states: Tensor) -> None:
        """To be called when an attention is, with its input [R, N, C]."""
        self._hidden_states, self._q = hidden_states, None

    def leave(self) -> Tensor | None:
        """q [R, N, I] of the attention's input, or None; forgets it."""
        q, self._hidden_states, self._q = self._q, None, None
        return q

    def _take(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._hidden_states is not None and args[0] is self._hidden_states:
            self._q = output


class FoldedAttention(IdentityAttention):
    """Adds the identities' term behind the output projection; half-folded, with the queries that the host computed."""

    def register(self, stack: ExitStack) -> None:
        super().register(stack)
        self._queries = AttentionQueries()
        if self._injection.form_used == "half":
            self._host.before_attention(stack, lambda hidden_states, _context: self._queries.enter(hidden_states))
            for site in self._host.sites:
                self._queries.listen(stack, self._host.attn2(site).get_submodule("to_q"))
        self._host.after_attention(stack, self._add)

    def _add(self, site: Site, hidden_states: Tensor, output: Tensor) -> None:
        step = self._host.checked_step(site, hidden_states)
        # Under autocast normalised states are float32 and the layer's output is half precision.
        hidden_states = hidden_states.to(output.dtype)
        self._pathways[site.index].add_folded(step, hidden_states, output, self._queries.leave())
        self._note_acting(site)


class GatedAttention(IdentityAttention):
    """FACT acts on the residual stream between self-attention and text attention."""

    def register(self, stack: ExitStack) -> None:
        super().register(stack)
        self._host.between_attentions(stack, self._term)

    def _term(self, site: Site, stream: Tensor) -> Tensor | None:
        step = self._host.checked_step(site, stream)
        self._note_acting(site)
        pathways = self._pathways[site.index]
        return pathways.before_text(step, stream) if pathways.acts(step) else None


class PlainAttention(IdentityAttention):
    """Takes q, k, v and the text attention where the layer computes them; F goes on to ``to_out`` in its place.

    Args:
        words: where the persons' words stand, for identities on the text side.
    """

    def __init__(
        self,
        host: HostUNet,
        injection: Injection,
        cache: RegionCache,
        bypass: BypassCheck,
        words: PersonWords | None,
    ) -> None:
        people = [None if one.on_text is None else (one.person, one.on_text) for one in injection.identities]
        self._contexts = TextContexts(people, words) if any(people) else None
        self._inputs: AttentionInputs | None = None  # of the attn2 that runs
        super().__init__(host, injection, cache, bypass)

    def register(self, stack: ExitStack) -> None:
        super().register(stack)
        self._host.before_attention(stack, self._take_inputs)
        for site in self._host.sites:
            self._register_site(stack, site)

    def enter(self, step: Step | None) -> None:  # noqa: ARG002
        self._inputs = None
        if self._contexts is not None:
            self._contexts.enter()

    def _take_inputs(self, hidden_states: Tensor, context: Tensor) -> None:
        self._inputs = AttentionInputs(hidden_states, context)

    def _register_site(self, stack: ExitStack, site: Site) -> None:
        attn2, computed = self._host.attn2(site), dict[str, Tensor]()

        def capture(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if self._host.running is not None and args[0].ndim == 3:  # else a call of an attachment's own
                    computed[name], computed["to_" + name] = output, args[0]

            return hook

        def exchange(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            complete = {"q", "k", "v"} <= computed.keys()  # not while another attachment inside this folds the layer
            if not complete or self._host.running is None or self._inputs is None:
                computed.clear()
                return None
            captured = Captured(computed["q"], args[0], computed["k"], computed["v"], computed["to_k"])
            inner = AttentionInputs(computed["to_q"], captured.context)
            computed.clear()
            return (self._blend(site, self._inputs, inner, captured), *args[1:])

        for name in ("q", "k", "v"):
            stack.callback(attn2.get_submodule(f"to_{name}").register_forward_hook(capture(name)).remove)
        stack.callback(attn2.get_submodule("to_out.0").register_forward_pre_hook(exchange).remove)

    def _blend(self, site: Site, outer: AttentionInputs, inner: AttentionInputs, captured: Captured) -> Tensor:
        """F [R, N, I]; the rows of ``inner`` may be others than the call's."""
        call = self._host.running
        assert call is not None
        inside = step_inside(call.step, outer, inner)
        step = self._host.checked_step(site, captured.z, inside)
        if self._contexts is not None:
            self._contexts.note_texts(call.step.rows, outer.context)
        self._note_acting(site)
        return self._pathways[site.index].blended(step, captured)


_LINEAR = ("to_q", "to_out.0", "to_k", "to_v")


def _follow_loads(stack: ExitStack, attn2: nn.Module, pathways: SitePathways) -> None:
    """Until ``stack`` closes, a state dict that is loaded into an attention makes its pathways start anew."""

    def forget(*_: object) -> None:
        pathways.forget()

    for name in _LINEAR:
        layer: Any = attn2.get_submodule(name)
        stack.callback(layer.register_load_state_dict_post_hook(forget).remove)
