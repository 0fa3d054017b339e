"""Host diffusers: puts an injection into a ``UNet2DConditionModel`` with torch hooks, and takes it out again.

Hooks leave every module, its ``forward`` and its attention processor as they are, so xformers, SDPA, sliced attention,
PEFT LoRA, ControlNet residuals and offloading go on working.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from dp_adapter.core import strict
from dp_adapter.core.adapter import LowRank
from dp_adapter.core.injection import Injection
from dp_adapter.core.pathways import Captured, RegionCache, SitePathways
from dp_adapter.core.types import Grid, Row, Site, Step
from dp_adapter.errors import HostError
from dp_adapter.hosts.calls import doubled, require_fit
from dp_adapter.hosts.lora import apply_lora
from dp_adapter.hosts.sites import Base, site_names

Rows = Sequence[Row] | Callable[[int], Sequence[Row]]


def base_of(unet: nn.Module) -> Base:
    """Which base model a UNet is, by the layout of its cross-attention blocks.

    Raises:
        HostError: neither SD1.5 nor SDXL.
    """
    paths: list[str] = [path for path, _ in unet.named_modules()]  # pyright: ignore[reportUnknownVariableType]
    modules = {path.removesuffix(".attn2") for path in paths if path.endswith(".attn2")}
    for base in ("sd15", "sdxl"):
        if {site.diffusers for site in site_names(base)} == modules:
            return base
    raise HostError(
        f"This UNet has {len(modules)} cross-attention blocks in an unknown layout",
        "DP-Adapter works in SD1.5 and SDXL models; SD2, SD3, Flux and refiners are not supported.",
    )


def sites_of(unet: nn.Module) -> list[Site]:
    """The sites of a UNet in checkpoint order, with the widths that it really has."""
    sites: list[Site] = []
    for name in site_names(base_of(unet)):
        attn2 = unet.get_submodule(name.diffusers + ".attn2")
        if getattr(attn2, "fused_projections", False):
            raise HostError("This UNet's attention projections are fused", "Call unet.unfuse_qkv_projections() first.")
        channels, heads = cast(int, attn2.query_dim), cast(int, attn2.heads)
        sites.append(Site(name.index, name.diffusers, name.level, name.halvings, channels, heads))
    return sites


def pipeline_rows(pipeline: Any) -> Callable[[int], list[Row]]:
    """Rows as diffusers' Stable Diffusion pipelines order them: with guidance the unconditional half comes first."""

    def rows(count: int) -> list[Row]:
        if not pipeline.do_classifier_free_guidance:
            return [Row("cond", i) for i in range(count)]
        half = count // 2
        return [Row("uncond", i) for i in range(half)] + [Row("cond", i) for i in range(half)]

    return rows


@contextmanager
def attach(unet: nn.Module, injection: Injection, rows: Rows, *, train_timesteps: int = 1000) -> Generator[None]:
    """Inside the ``with``, the UNet's cross-attentions carry the injection.

    Args:
        unet: a ``UNet2DConditionModel`` of SD1.5 or SDXL.
        rows: what every batch element is, in the batch's order; or a function of the batch size that says it.
        train_timesteps: length of the noise schedule, which turns a timestep into progress.

    Raises:
        HostError: the UNet is of another kind, or the adapter's shapes do not fit it.
    """
    with ExitStack() as stack:
        if injection.active:
            _Attachment(unet, injection.without_idle(), rows, train_timesteps).register(stack)
        yield


class _Attachment:
    """The hooks of one ``with``. The step is set when the UNet is entered and read by the sites below it."""

    def __init__(self, unet: nn.Module, injection: Injection, rows: Rows, train_timesteps: int) -> None:
        self._unet = unet
        self._injection = injection
        self._rows = rows
        self._train_timesteps = train_timesteps
        self._step: Step | None = None
        self._twinned = False
        self._cache = RegionCache(injection)
        self._sites = sites_of(unet)
        self._pathways: list[SitePathways] = []
        for identity in injection.identities:
            require_fit(self._sites, identity.adapter, self._widths)

    def register(self, stack: ExitStack) -> None:
        apply_lora(stack, self._injection.lora, self._linear)
        stack.callback(self._unet.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        if self._injection.text.strict:
            stack.callback(self._unet.register_forward_hook(self._leave_strict).remove)
        for site in self._sites:
            block = self._unet.get_submodule(site.name)
            attn2 = block.get_submodule("attn2")
            to_q, to_out = attn2.get_submodule("to_q"), attn2.get_submodule("to_out.0")
            pathways = SitePathways(self._injection, site, self._cache, to_q, to_out)
            self._pathways.append(pathways)
            if self._injection.gated:
                self._register_gated(stack, block, pathways)
            elif self._injection.folded:
                stack.callback(attn2.register_forward_hook(self._folded(pathways)).remove)
            else:
                self._register_plain(stack, attn2, pathways)
            if self._injection.text.strict:
                hook = self._self_attention(pathways)
                stack.callback(block.get_submodule("attn1").register_forward_hook(hook).remove)

    def _widths(self, site: Site) -> tuple[int, int]:
        attn2 = self._unet.get_submodule(site.name + ".attn2")
        return cast(int, attn2.inner_dim), cast(int, attn2.cross_attention_dim)

    @property
    def _current(self) -> Step:
        assert self._step is not None, "a cross-attention was called outside its UNet's forward"
        return self._step

    def _linear(self, entry: LowRank) -> nn.Module:
        attention = "attn2" if entry.layer % 2 else "attn1"
        linear = "to_out.0" if entry.linear == "to_out" else entry.linear
        return self._unet.get_submodule(f"{self._sites[entry.layer // 2].name}.{attention}.{linear}")

    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sample: Tensor = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        rows = tuple(self._rows(len(sample)) if callable(self._rows) else self._rows)
        if len(rows) != len(sample):
            raise HostError(f"The UNet was called with {len(sample)} rows, but {len(rows)} were announced")
        # The rows of one call share a timestep in every sampler of diffusers.
        t = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        progress = min(max(1 - t / (self._train_timesteps - 1), 0.0), 1.0)
        step = Step(progress, rows, Grid(*sample.shape[-2:]))
        self._cache.require_masks(step)
        # Without an identity at work the twins would say nothing new, cost a row, and round differently.
        self._twinned = self._injection.text.strict and any(pathways.acts(step) for pathways in self._pathways)
        if not self._twinned:
            self._step = step
            return None
        twins = tuple(Row("text", row.sample) for row in rows)
        self._step = replace(step, rows=rows + twins)
        return doubled(args, len(rows)), doubled(kwargs, len(rows))

    def _leave_strict(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Drops the text-only twins, whose prediction also stands outside the region."""
        if not self._twinned:
            return output
        sample = cast(Tensor, output[0] if isinstance(output, tuple) else output.sample)
        joined = strict.prediction(self._cache, self._current, sample)
        if isinstance(output, tuple):
            return (joined, *output[1:])
        output.sample = joined
        return output

    def _folded(self, pathways: SitePathways) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            pathways.add_folded(self._current, args[0], output)

        return hook

    def _register_plain(self, stack: ExitStack, attn2: nn.Module, pathways: SitePathways) -> None:
        """Takes q, k, v and the text attention where the layer computes them; F goes on to ``to_out`` in its place."""
        seen: dict[str, Tensor] = {}

        def capture(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                seen[name] = output
                if name == "k":
                    seen["context"] = args[0]

            return hook

        def exchange(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if not {"q", "k", "v"} <= seen.keys():
                return None  # another attachment inside this one folds the layer
            captured = Captured(seen["q"], args[0], seen["k"], seen["v"], seen["context"])
            seen.clear()
            return (pathways.blended(self._current, captured), *args[1:])

        for name in ("q", "k", "v"):
            stack.callback(attn2.get_submodule(f"to_{name}").register_forward_hook(capture(name)).remove)
        stack.callback(attn2.get_submodule("to_out.0").register_forward_pre_hook(exchange).remove)

    def _register_gated(self, stack: ExitStack, block: nn.Module, pathways: SitePathways) -> None:
        """FACT acts on the residual stream after attn1; adding its term to attn1's output is the same."""
        stream: list[Tensor] = []

        def enter(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            stream[:] = [args[0] if args else kwargs["hidden_states"]]

        def after(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            hidden_states = stream.pop() + output
            if not pathways.acts(self._current):
                return None
            return output + pathways.before_text(self._current, hidden_states)

        stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(block.get_submodule("attn1").register_forward_hook(after).remove)

    def _self_attention(self, pathways: SitePathways) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            if not self._twinned:
                return output
            return strict.self_attention(self._cache, pathways.site, self._current, output)

        return hook
