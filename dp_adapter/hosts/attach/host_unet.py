"""What an attachment asks of a host: where the layers of its UNet are, and what a call of it says.

Shapes: R rows, N positions, C hidden channels, L text tokens, D token width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from dp_adapter.core.adapter import LowRank
from dp_adapter.core.reference_photo import NoiseLevel
from dp_adapter.core.res_adapter import LayerPath
from dp_adapter.core.types import Site, Step
from dp_adapter.hosts.rows.added_rows import repeat_rows

BeforeAttention = Callable[[Tensor, Tensor], None]
"""Sees hidden states [R, N, C] and context [R, L, D]."""
AfterAttention = Callable[[Site, Tensor, Tensor], None]
"""Changes the output, the last argument, in place; before it stand the attention's hidden states; both [R, N, C]."""
StreamTerm = Callable[[Site, Tensor], "Tensor | None"]
"""From the stream after self-attention to what is added to it, None for nothing; both [R, N, C]."""
ChangeOutput = Callable[[Site, Tensor], Tensor]
"""From an attention's output to the one in its place; both [R, N, C]."""


@dataclass(frozen=True)
class UNetCall:
    """One call of a UNet.

    Attributes:
        args, kwargs: the UNet's arguments, without Forge's ``transformer_options``, which are ``options``.
    """

    step: Step
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: Mapping[str, Any] | None = None


class HostUNet(ABC):
    """A UNet as its host names it. The sequences go by site, in checkpoint order.

    Attributes:
        sites: the text attentions; blocks: the transformer blocks, with ``attn1``, ``attn2`` and in these ``to_q``,
            ``to_k``, ``to_v``, ``to_out.0``.
        widths: inner channels I and token width D of ``attn2``.
        argument_names: keywords of the UNet's first two arguments, latents and timesteps.
        merges_lora: False where somebody else writes to the weights of linear layers too.
        layer_path: from diffusers' paths to this UNet's; None where they are the same.
        noise_level: of the UNet's input; None where the host does not say.
        running: the call in which the identities act; None outside of one.
    """

    merges_lora = False
    layer_path: LayerPath | None = None

    def __init__(
        self,
        unet: nn.Module,
        sites: Sequence[Site],
        block_paths: Sequence[str],
        widths: Sequence[tuple[int, int]],
        argument_names: tuple[str, str],
        noise_level: NoiseLevel | None,
    ) -> None:
        self.unet, self.sites, self.widths = unet, sites, widths
        self.blocks = [unet.get_submodule(path) for path in block_paths]
        self.argument_names = argument_names
        self.noise_level = noise_level
        self.running: UNetCall | None = None

    def attn1(self, site: Site) -> nn.Module:
        return self.blocks[site.index].get_submodule("attn1")

    def attn2(self, site: Site) -> nn.Module:
        return self.blocks[site.index].get_submodule("attn2")

    def linear(self, entry: LowRank) -> nn.Module:
        """The layer that an entry of a checkpoint's LoRA belongs to."""
        attention = "attn2" if entry.layer % 2 else "attn1"
        linear = "to_out.0" if entry.linear == "to_out" else entry.linear
        return self.blocks[entry.layer // 2].get_submodule(f"{attention}.{linear}")

    def register(self, stack: ExitStack) -> None:  # noqa: B027
        """Listens to what the host itself has to know of a call, until ``stack`` closes."""

    @abstractmethod
    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UNetCall | None:
        """What a call with these arguments is; None leaves it alone.

        Raises:
            HostError: its rows cannot be told, or a region cannot be placed in it.
        """

    def arguments(self, call: UNetCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the UNet is called with instead."""
        return call.args, call.kwargs

    def add_twins(self, call: UNetCall) -> UNetCall:
        """The call with the rows in which identities act once more behind all others, without identity."""
        rows, step = len(call.step.rows), call.step.twinned()
        args, kwargs = repeat_rows(call.args, rows, step.twins), repeat_rows(call.kwargs, rows, step.twins)
        return replace(call, step=step, args=args, kwargs=kwargs)

    def describe_photos(self, call: UNetCall) -> UNetCall:
        """The call, with whatever else the host says of its rows said of the photos', which were just added."""
        return call

    def rows_at_once(self, call: UNetCall) -> int:  # noqa: ARG002
        """Rows come and go in chunks of as many."""
        return 1

    @abstractmethod
    def before_attention(self, stack: ExitStack, listen: BeforeAttention) -> None:
        """Listens to the text attentions' inputs in the calls in which identities act, until ``stack`` closes."""

    @abstractmethod
    def after_attention(self, stack: ExitStack, change: AfterAttention) -> None:
        """Changes the text attentions' outputs likewise."""

    @abstractmethod
    def between_attentions(self, stack: ExitStack, term: StreamTerm) -> None:
        """Adds to the residual stream between self-attention and text attention likewise."""

    @abstractmethod
    def after_self_attention(self, stack: ExitStack, change: ChangeOutput) -> None:
        """Changes the self-attentions' outputs in calls whose rows have twins."""

    def step_at(self, site: Site, step: Step) -> Step:  # noqa: ARG002
        """The step as a site sees it."""
        return step

    @abstractmethod
    def require_shape(self, site: Site, step: Step, hidden_states: Tensor) -> None:
        """Raises HostError where the rows or the positions of [R, N, C] are not those of the step at a site."""

    def checked_step(self, site: Site, hidden_states: Tensor, inside: Step | None = None) -> Step:
        """The step that runs, as a site sees it.

        Args:
            hidden_states: [R, N, C] there.
            inside: the step for the rows inside of an attention, where they are not those of the call.

        Raises:
            HostError: as ``require_shape``.
        """
        assert self.running is not None
        step = inside or self.running.step
        self.require_shape(site, step, hidden_states)
        return self.step_at(site, step)
