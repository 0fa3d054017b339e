"""An injection in a UNet by torch hooks: what diffusers' and ldm's UNets share. The hosts only translate names.

Hooks leave every module and its ``forward`` as they are, so attention implementations, LoRA, ControlNet and offloading
go on working.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from dp_adapter.core import twins
from dp_adapter.core.adapter import LowRank
from dp_adapter.core.injection import Injection
from dp_adapter.core.pathways import SitePathways
from dp_adapter.core.reference_photo import NoiseLevel
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.res_adapter import PathMap
from dp_adapter.core.text.site_text import SiteText
from dp_adapter.core.text.text_side import PersonWords
from dp_adapter.core.types import Captured, Site, Step
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.bypass_check import Acting
from dp_adapter.hosts.attach.calls import doubled, follow_loads, require_fit, text_side_of
from dp_adapter.hosts.attach.lora import apply_lora
from dp_adapter.hosts.attach.queries import Queries
from dp_adapter.hosts.attach.res_adapter import apply_companion
from dp_adapter.hosts.attach.torch_compile import uncompiled
from dp_adapter.hosts.attach.word_maps import WordMaps
from dp_adapter.hosts.rows.reference_rows import PhotoRows
from dp_adapter.hosts.rows.regional_prompt_rows import AttentionInputs, require_whole, step_inside

StepOf = Callable[[tuple[Any, ...], dict[str, Any]], "Step | None"]
# (step, block's input, stream after self-attention) -> what to add to the stream; all [R, N, C]
Change = Callable[[Step, Tensor, Tensor], "Tensor | None"]


@dataclass(frozen=True)
class UNetParts:
    """A UNet as its host names it. The sequences go by site, in checkpoint order.

    Attributes:
        blocks: the transformer blocks, with ``norm2`` and ``attn1``, ``attn2``; in these ``to_q``, ``to_k``, ``to_v``,
            ``to_out.0``.
        widths: inner channels I and token width D of ``attn2``.
        hidden_states: keyword of a block's and an attention's first argument; context: of an attention's second.
        call: keywords of the UNet's first two arguments, latents and timesteps.
        place: from diffusers' paths to this UNet's; None where they are the same.
        merge_lora: False where somebody else writes to the weights of linear layers too.
    """

    unet: nn.Module
    sites: Sequence[Site]
    blocks: Sequence[nn.Module]
    widths: Sequence[tuple[int, int]]
    hidden_states: str
    context: str
    call: tuple[str, str]
    merge_lora: bool
    place: PathMap | None = None


class Attachment:
    """The hooks of one ``with``. The step is set when the UNet is entered and read by the sites below it.

    Attributes:
        progress: of the latest call of the UNet.
        acting: whether the identity acts where it has to.
        call: the call of the UNet that runs, also where nothing acts in it; None outside, or where its rows are not
            known.
    """

    def __init__(
        self,
        parts: UNetParts,
        injection: Injection,
        step_of: StepOf,
        maps: WordMaps | None = None,
        words: PersonWords | None = None,
        level: NoiseLevel | None = None,
    ) -> None:
        """Raises HostError where an adapter's shapes do not fit the UNet, or a photo cannot be shown to it.

        Args:
            step_of: what a call of the UNet with these (args, kwargs) is; None leaves the call alone.
            maps: sees the text attention, too.
            words: where the persons' words stand, for identities on the text side.
            level: noise level of the UNet's input, for identities with a photo.
        """
        self._parts = parts
        self._maps = maps
        self._injection = injection.drop_idle()
        self._step_of = step_of
        self.progress = 0.0
        self.acting = Acting()
        self.call: Step | None = None
        self._step: Step | None = None
        self._attention: AttentionInputs | None = None  # of the attn2 that runs
        self._queries = Queries()
        self._twinned = False
        self._cache = RegionCache(self._injection)
        self._photos = PhotoRows(self._injection, self._cache, level, parts.call)
        for identity in self._injection.identities:
            require_fit(parts.sites, identity.adapter, lambda site: parts.widths[site.index])
        self._side = text_side_of(self._injection, words)
        self._pathways = self._all_pathways()
        one, *others = self._injection.identities
        self._placed = bool(others) or one.placed or not (self._injection.folded or self._injection.gated)

    def register(self, stack: ExitStack) -> None:
        """Puts the hooks in until ``stack`` closes. Raises HostError where they would not be reached."""
        stack.enter_context(uncompiled(self._parts.unet))
        apply_lora(stack, self._injection.lora, self._linear, merge=self._parts.merge_lora)
        apply_companion(stack, self._injection.companion, self._parts.unet, self._parts.place)
        unet = self._parts.unet
        if self._maps is not None:
            self._maps.listen(
                stack, self._parts.sites, lambda site: self._parts.blocks[site.index].get_submodule("attn2")
            )
        stack.callback(unet.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        stack.callback(unet.register_forward_hook(self._leave).remove)
        for site, block in zip(self._parts.sites, self._parts.blocks, strict=True):
            attn2 = block.get_submodule("attn2")
            if self._injection.gated:
                self._register_change(stack, site, block, self._gated(site))
            elif self._injection.folded:
                if self._injection.form_used == "half":
                    self._listen_to_queries(stack, attn2)
                stack.callback(attn2.register_forward_hook(self._folded(site), with_kwargs=True).remove)
            else:
                self._register_plain(stack, site, attn2)
            follow_loads(stack, attn2, self._pathways[site.index])
            self._photos.listen(stack, site, block.get_submodule("attn1"), lambda: self._step, self.acting)
            follows = self._injection.text.strict or self._injection.text.free
            if follows:
                self._register_change(stack, site, block, self._follow_twins(site))
            if follows or self._photos.uses_photo:
                stack.callback(attn2.get_submodule("to_q").register_forward_pre_hook(self._require_twins).remove)

    def _all_pathways(self) -> list[SitePathways]:
        pathways: list[SitePathways] = []
        for site, block in zip(self._parts.sites, self._parts.blocks, strict=True):
            to_q, to_out, to_k = (block.get_submodule(f"attn2.{name}") for name in ("to_q", "to_out.0", "to_k"))
            text = None
            if self._side is not None:
                text = SiteText(self._side, site.heads, to_k, block.get_submodule("attn2.to_v"))
            pathways.append(SitePathways(self._injection, site, self._cache, to_q, to_out, to_k, text))
        return pathways

    def _linear(self, entry: LowRank) -> nn.Module:
        attention = "attn2" if entry.layer % 2 else "attn1"
        linear = "to_out.0" if entry.linear == "to_out" else entry.linear
        return self._parts.blocks[entry.layer // 2].get_submodule(f"{attention}.{linear}")

    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._step = self.call = None  # stays so if the next line raises
        self._listen(None)
        if self._side is not None:
            self._side.enter()
        step = self._step_of(args, kwargs)
        if step is None:
            return None
        self.progress, self.call = step.progress, step
        self.acting.enter()
        if not self._cache.enter(step):
            self._listen(step)
            return None
        # Without an identity at work the twins would say nothing new, cost a row, and round differently.
        acts = self._photos.acts(step) or any(pathways.acts(step) for pathways in self._pathways)
        if acts and any(row.kind != "text" for row in step.rows):
            self.acting.expect()
        self._twinned = self._cache.twinned and acts
        self._step = self.call = self._photos.added(step.twinned() if self._twinned else step)
        self._listen(self._step)
        if self._twinned:
            args, kwargs = doubled(args, len(step.rows)), doubled(kwargs, len(step.rows))
        if self._step.references:
            args, kwargs = self._photos.extended(args, kwargs, self._step)
        return None if self._step is step else (args, kwargs)

    def _listen(self, step: Step | None) -> None:
        if self._maps is not None:
            self._maps.enter(step)

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Drops the text-only twins and the photos."""
        self._listen(None)
        step, self._step, self._attention, self.call = self._step, None, None, None
        if step is None:
            return output
        self.acting.leave()
        if not (self._twinned or step.references):
            return output
        if isinstance(output, Tensor):
            return twins.drop_twins(self._cache, step, output, self._twinned)
        if isinstance(output, tuple):
            first, *rest = cast("tuple[Any, ...]", output)
            return (twins.drop_twins(self._cache, step, first, self._twinned), *rest)
        output.sample = twins.drop_twins(self._cache, step, output.sample, self._twinned)
        return output

    def _hidden_states(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return args[0] if args else kwargs[self._parts.hidden_states]

    def _require_grid(self, site: Site, step: Step, hidden_states: Tensor) -> None:
        """Raises HostError where a region cannot be placed on [R, N, C], because N is not the site's grid."""
        grid = step.latent.halved(site.halvings)
        if self._placed and hidden_states.shape[1] != len(grid):
            raise HostError(
                f"{site.name} has {hidden_states.shape[1]} positions where {grid.height} x {grid.width} were expected",
                "Another extension makes the picture smaller inside the model (a high-resolution fix of it, for "
                "instance); a region cannot be placed then. Switch that off, or use the identity in the whole picture.",
            )

    def _enter_attention(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step is not None:
            context: Any = args[1] if len(args) > 1 else kwargs[self._parts.context]
            if isinstance(context, tuple):  # diffusers' own IP-Adapters have theirs beside the text
                context = cast("tuple[Any, ...]", context)[0]
            self._attention = AttentionInputs(self._hidden_states(args, kwargs), context)

    def _require_twins(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._step is not None and (self._twinned or self._step.references):
            require_whole(self._step, args[0])

    def _mark(self, site: Site) -> None:
        """A site runs, and says whether an identity acts there."""
        if not self.acting.acted and self._step is not None:
            self.acting.acted = self._pathways[site.index].acts(self._step)

    def _folded(self, site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if self._step is None:
                return
            hidden_states = self._hidden_states(args, kwargs)
            self._require_grid(site, self._step, hidden_states)
            # Under autocast normalised states are float32 and the layer's output is half precision.
            hidden_states = hidden_states.to(output.dtype)
            self._pathways[site.index].add_folded(self._step, hidden_states, output, self._queries.leave())
            self._mark(site)

        return hook

    def _listen_to_queries(self, stack: ExitStack, attn2: nn.Module) -> None:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._step is not None:
                self._queries.enter(self._hidden_states(args, kwargs))

        stack.callback(attn2.register_forward_pre_hook(enter, with_kwargs=True).remove)
        self._queries.listen(stack, attn2.get_submodule("to_q"))

    def _register_plain(self, stack: ExitStack, site: Site, attn2: nn.Module) -> None:
        """Takes q, k, v and the text attention where the layer computes them; F goes on to ``to_out`` in its place."""
        seen: dict[str, Tensor] = {}

        def capture(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if self._step is not None and args[0].ndim == 3:  # else a call of an attachment's own
                    seen[name], seen["to_" + name] = output, args[0]

            return hook

        def exchange(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self._step is None or self._attention is None or not {"q", "k", "v"} <= seen.keys():
                return None  # without q, k and v another attachment inside this one folds the layer
            captured = Captured(seen["q"], args[0], seen["k"], seen["v"], seen["to_k"])
            inner = AttentionInputs(seen["to_q"], captured.context)
            step = step_inside(self._step, self._attention, inner, self._twinned)
            seen.clear()
            self._require_grid(site, step, captured.z)
            if self._side is not None:
                self._side.note_texts(self._step.rows, self._attention.context)
            self._mark(site)
            return (self._pathways[site.index].blended(step, captured), *args[1:])

        stack.callback(attn2.register_forward_pre_hook(self._enter_attention, with_kwargs=True).remove)
        for name in ("q", "k", "v"):
            stack.callback(attn2.get_submodule(f"to_{name}").register_forward_hook(capture(name)).remove)
        stack.callback(attn2.get_submodule("to_out.0").register_forward_pre_hook(exchange).remove)

    def _gated(self, site: Site) -> Change:
        """FACT acts on the residual stream between self-attention and text attention."""

        def change(step: Step, _before: Tensor, after: Tensor) -> Tensor | None:
            pathways = self._pathways[site.index]
            self._mark(site)
            return pathways.before_text(step, after) if pathways.acts(step) else None

        return change

    def _follow_twins(self, site: Site) -> Change:
        """Where a row follows its twin, its self-attention is the twin's."""

        def change(step: Step, before: Tensor, after: Tensor) -> Tensor | None:
            if not self._twinned:
                return None
            attention = after - before
            return twins.mix_self_attention(self._cache, site, step, attention) - attention

        return change

    def _register_change(self, stack: ExitStack, site: Site, block: nn.Module, change: Change) -> None:
        """Adds to the residual stream between the attentions: to what ``norm2`` reads and to what ``attn2`` returns.

        Not to ``attn1``'s output: token merging shortens it, and ControlNet's reference calls ``attn1`` several times.
        """
        before: list[Tensor] = []
        added: list[Tensor] = []

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before[:] = [self._hidden_states(args, kwargs)]
            added.clear()

        def between(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self._step is None:
                return None
            self._require_grid(site, self._step, args[0])
            if (term := change(self._step, before.pop(), args[0])) is None:
                return None
            added[:] = [term]
            return (args[0] + term, *args[1:])

        def leave(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            return output + added.pop() if added else None

        stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(block.get_submodule("norm2").register_forward_pre_hook(between).remove)
        stack.callback(block.get_submodule("attn2").register_forward_hook(leave).remove)
