"""The host's own q, for the half-folded form: kept while an attention runs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn


class AttentionQueries:
    """What ``to_q`` made of just what the attention got, if anything.

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
