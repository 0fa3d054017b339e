"""Identities on the text side: what a person changes in the text's context, and which keys and values follow it.

At a site the text attention with the changed context is Z'_t = Attn(Q, K', V'). In the person's region the pathway adds
G s (Z'_t - Z_t), so that it composes with regions, schedules and the identity attention; M = 1 and s = 1 give exactly
the changed context of the published systems. Only conditional rows have a person's word.

Locks: ``key`` (Perfusion, arXiv 2305.01644) takes the keys from the unchanged context, so that the word draws attention
as its class does, and the values from the changed one; ``others`` (AlignIT, arXiv 2406.18893) takes keys and values of
every token but the person's from the unchanged context.

Shapes: L text tokens, D token width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Lock = Literal["none", "key", "others"]
Fuse = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class TextIdentity:
    """One person on the text side.

    Attributes:
        fuse: (context [L, D] in float32, positions of the person's word in it, in order) -> context [L, D] with the
            person in it. Without positions it returns the context unchanged, unless it needs none.
        tokens: how many tokens the person's word takes; the word is repeated in the prompt until it has as many.
        lock: which keys and values stay those of the unchanged context.
        weight: strength s of this pathway.
        start: progress before which the context stays as it is, for families whose identity attention starts earlier.
    """

    fuse: Fuse
    tokens: int = 1
    lock: Lock = "none"
    weight: float = 1.0
    start: float = 0.0
