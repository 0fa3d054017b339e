"""A UNet whose attentions are reached by torch hooks: diffusers' and ldm's, which only translate names.

Hooks leave every module and its ``forward`` as they are, so attention implementations, LoRA, ControlNet and offloading
go on working.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.types import Site, Step
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.host_unet import (
    AfterAttention,
    BeforeAttention,
    ChangeOutput,
    HostUNet,
    StreamTerm,
    UNetCall,
)

StepOf = Callable[[tuple[Any, ...], dict[str, Any]], "Step | None"]
# (stream before self-attention, stream after it) -> what to add to the stream; all [R, N, C]
_Term = Callable[[Tensor, Tensor], "Tensor | None"]


class HookedUNet(HostUNet):
    """A UNet with hooks at its transformer blocks.

    Args:
        injection: whether any of it is regional says whether the sites' grids have to be right.
        step_of: what a call of the UNet with these (args, kwargs) is; None leaves the call alone.
        keywords: of an attention's two arguments, the first of which is a block's, too.
    """

    def __init__(self, injection: Injection, step_of: StepOf, keywords: tuple[str, str], *parts: Any) -> None:
        super().__init__(*parts)
        self._step_of = step_of
        self._keywords = keywords
        one, *others = injection.identities
        self._regional = bool(others) or one.is_regional or not (injection.folded or injection.gated)

    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UNetCall | None:
        step = self._step_of(args, kwargs)
        return None if step is None else UNetCall(step, args, kwargs)

    def before_attention(self, stack: ExitStack, listen: BeforeAttention) -> None:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.running is not None:
                context: Any = args[1] if len(args) > 1 else kwargs[self._keywords[1]]
                if isinstance(context, tuple):  # diffusers' own IP-Adapters have theirs beside the text
                    context = cast("tuple[Any, ...]", context)[0]
                listen(self._hidden_states(args, kwargs), context)

        for site in self.sites:
            stack.callback(self.attn2(site).register_forward_pre_hook(hook, with_kwargs=True).remove)

    def after_attention(self, stack: ExitStack, change: AfterAttention) -> None:
        def hook_at(site: Site) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
                if self.running is not None:
                    change(site, self._hidden_states(args, kwargs), output)

            return hook

        for site in self.sites:
            stack.callback(self.attn2(site).register_forward_hook(hook_at(site), with_kwargs=True).remove)

    def between_attentions(self, stack: ExitStack, term: StreamTerm) -> None:
        def term_at(site: Site) -> _Term:
            return lambda _before, after: term(site, after)

        for site in self.sites:
            self._add_to_stream(stack, site, term_at(site))

    def after_self_attention(self, stack: ExitStack, change: ChangeOutput) -> None:
        def term_at(site: Site) -> _Term:
            def term(before: Tensor, after: Tensor) -> Tensor | None:
                if self.running is None or not self.running.step.twins:
                    return None
                attention = after - before
                return change(site, attention) - attention

            return term

        for site in self.sites:
            self._add_to_stream(stack, site, term_at(site))

    def require_shape(self, site: Site, step: Step, hidden_states: Tensor) -> None:
        """Raises HostError where a region cannot be placed on [R, N, C], because N is not the site's grid."""
        grid = step.latent.halved(site.halvings)
        if self._regional and hidden_states.shape[1] != len(grid):
            raise HostError(
                f"{site.name} has {hidden_states.shape[1]} positions where {grid.height} x {grid.width} were expected",
                "Another extension makes the picture smaller inside the model (a high-resolution fix of it, for "
                "instance); a region cannot be placed then. Switch that off, or use the identity in the whole picture.",
            )

    def _hidden_states(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return args[0] if args else kwargs[self._keywords[0]]

    def _add_to_stream(self, stack: ExitStack, site: Site, term: _Term) -> None:
        """Adds to the residual stream between the attentions: to what ``norm2`` reads and to what ``attn2`` returns.

        Not to ``attn1``'s output: token merging shortens it, and ControlNet's reference calls ``attn1`` several times.
        """
        before: list[Tensor] = []
        added: list[Tensor] = []

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before[:] = [self._hidden_states(args, kwargs)]
            added.clear()

        def between(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self.running is None or (more := term(before.pop(), args[0])) is None:
                return None
            added[:] = [more]
            return (args[0] + more, *args[1:])

        def leave(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            return output + added.pop() if added else None

        block = self.blocks[site.index]
        stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(block.get_submodule("norm2").register_forward_pre_hook(between).remove)
        stack.callback(block.get_submodule("attn2").register_forward_hook(leave).remove)
