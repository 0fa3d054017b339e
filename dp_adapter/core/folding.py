"""The folded weights of one site, made at its first call in a generation and kept while the model's stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from dp_adapter.core.attention import (
    Folded,
    HalfFolded,
    Linear,
    fold,
    folded_attention,
    half_fold,
    half_folded_attention,
)
from dp_adapter.core.layer_versions import LayerState
from dp_adapter.core.types import RowKind, Site

Key = tuple[int, RowKind]
"""Number of an identity, and kind of row."""


class Folds:
    """Folded or half-folded weights by identity and kind of row.

    Args:
        half: whether W_o alone is folded.
        to_q, to_out: the site's projections as the host calls them, with any LoRA.
    """

    def __init__(self, half: bool, site: Site, to_q: Linear, to_out: Linear) -> None:
        self._half, self._site = half, site
        self._to_q, self._to_out = to_q, to_out
        self._made_from = LayerState(to_q, to_out)
        self._folds: dict[Key, Folded | HalfFolded] = {}

    def forget(self) -> None:
        """Other weights were loaded into the projections."""
        self._made_from.forget()

    def require(self, keys: Sequence[Key], keys_values: Callable[[Key], tuple[Tensor, Tensor]]) -> None:
        """Folds what is not there yet of ``keys``, together, and all anew where the projections have changed.

        Args:
            keys_values: K and V [T, I] of one of them, in the dtype and on the device that the projections take.
        """
        if self._made_from.changed():
            self._folds.clear()
        missing = [key for key in keys if key not in self._folds]
        if not missing:
            return
        several = [keys_values(key) for key in missing]
        if self._half:
            made = [half_fold(k, v, self._to_out, self._site.heads) for k, v in several]
        else:
            made = fold(several, self._to_q, self._to_out, self._site.channels, self._site.heads)
        self._folds.update(zip(missing, made, strict=True))

    def term(self, key: Key, hidden_states: Tensor, q: Tensor | None, positions: Tensor | slice) -> Tensor:
        """``Z_id W_o`` at some positions of all rows together, [n, C].

        Args:
            hidden_states: [R * N, C]; q: [R * N, I], the host's own, or None where it has none for these rows, which
                the half-folded form then computes.
        """
        folded = self._folds[key]
        if isinstance(folded, Folded):
            return folded_attention(hidden_states[positions], folded)
        queries = self._to_q(hidden_states[positions]) if q is None else q[positions]
        return half_folded_attention(queries, folded)
