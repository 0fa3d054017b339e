"""Identities on the text side at one site: Z'_t - Z_t.

W_k and W_v are linear, so K' = K + W_k (c' - c), in the tokens that change; what others did to the host's own K and V
(LoRA, hypernetworks) stays.

Shapes: L text tokens, D token width, I inner channels, n positions of one row, r tokens that change.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor

from dp_adapter.core.attention import Linear, attend
from dp_adapter.core.layer_versions import LayerState
from dp_adapter.core.text.text_side import Change, TextContexts, TextPart
from dp_adapter.core.types import Captured, Row


@dataclass(frozen=True)
class _Projected:
    """W_k delta and W_v delta [r, I] of the tokens [r] that change in a part of a text, counted from its beginning."""

    tokens: Tensor
    k: Tensor
    v: Tensor


class SiteText:
    """The text side at one site: keeps what W_k and W_v make of the changes, while they stay the same."""

    def __init__(self, side: TextContexts, heads: int, to_k: Linear, to_v: Linear) -> None:
        self._side = side
        self._heads = heads
        self._to_k, self._to_v = to_k, to_v
        self._made_from = LayerState(to_k, to_v)
        self._projections: WeakKeyDictionary[Change, dict[tuple[int, int], _Projected | None]] = WeakKeyDictionary()

    def forget(self) -> None:
        """Other weights were loaded into the projections."""
        self._made_from.forget()

    def term(self, number: int, kind: Row, captured: Captured, row: int, positions: slice | Tensor) -> Tensor | None:
        """Z'_t - Z_t of identity ``number`` at some positions [n] of one conditional row; None where nothing changes.

        Args:
            kind: what the row is; row: its number in ``captured``.

        Returns:
            [n, I]

        Raises:
            HostError: the row has a text that nobody knows.
        """
        part = self._side.find_part(kind, captured.context, row)
        q, z, k, v = captured.q[row][positions], captured.z[row][positions], captured.k[row], captured.v[row]
        projected = self._project(self._side.change(part.text, number), part, k)
        if projected is None:
            return None
        keys = k if self._side.of(number).lock == "key" else k.index_add(0, projected.tokens, projected.k)
        return attend(q, keys, v.index_add(0, projected.tokens, projected.v), self._heads) - z

    def _project(self, change: Change, part: TextPart, like: Tensor) -> _Projected | None:
        if self._made_from.changed():
            self._projections.clear()
        kept = self._projections.setdefault(change, {})
        key = (part.start, part.length)
        if key not in kept:
            tokens = change.tokens - part.start
            inside = (tokens >= 0) & (tokens < part.length)
            delta = change.delta[inside].to(like)
            projected = _Projected(
                tokens[inside].to(like.device), self._to_k(delta).to(like), self._to_v(delta).to(like)
            )
            kept[key] = projected if len(delta) else None
        return kept[key]
