"""How much each token of the text is looked at, over all text attentions of a diffusers UNet; with gradients."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dp_adapter.core.attention import split_heads
from dp_adapter.hosts.attach.diffusers import sites_of


class TokenShares:
    """Filled by one call of the UNet; ``mean`` is over sites, heads and positions: [R, L]."""

    def __init__(self) -> None:
        self._q: dict[str, Tensor] = {}
        self._shares: dict[str, Tensor] = {}

    @property
    def mean(self) -> Tensor:
        return torch.stack(list(self._shares.values())).mean(0)

    def listen(self, stack: ExitStack, name: str, attn2: nn.Module) -> None:
        """Listens to one attention until ``stack`` closes; a processor makes q before k."""
        heads = cast(int, attn2.heads)

        def query(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._q[name] = output  # [R, N, heads d]

        def key(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            q, k = (split_heads(one.float(), heads) for one in (self._q.pop(name), output))
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)  # [R, heads, N, L]
            self._shares[name] = weights.mean((1, 2))

        stack.callback(attn2.get_submodule("to_q").register_forward_hook(query).remove)
        stack.callback(attn2.get_submodule("to_k").register_forward_hook(key).remove)


@contextmanager
def token_shares(unet: nn.Module) -> Generator[TokenShares]:
    """Records the shares of the UNet's next call while the context is open."""
    shares = TokenShares()
    with ExitStack() as stack:
        for site in sites_of(unet):
            shares.listen(stack, site.name, unet.get_submodule(f"{site.name}.attn2"))
        yield shares
