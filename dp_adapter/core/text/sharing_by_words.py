"""Several persons without masks: a picture's positions divided by the attention of the persons' words (MIP-Adapter).

Person k's words are encoded as a text of their own. At a site their tokens attend to the positions, which gives a map
a_k over them; the share of person k is a_k / sum_j a_j, so that the shares sum to one at every position. MIP-Adapter
(arXiv 2409.17920) has one trained layer a site more, which says from the text's features how much a position takes of
the identities at all.

Source: hqhQAQ/MIP-Adapter@ef01c84 ``ip_adapter/attention_processor_multi.py``, whose unconditional rows get the maps of
an empty text at the same places (``ip_adapter_multi.py``).

Shapes: N positions, I inner channels, t tokens of a person's words, L text tokens, D token width, K persons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dp_adapter.core.attention import Linear, split_heads
from dp_adapter.core.layer_versions import LayerState
from dp_adapter.core.regions.region_masks import ROUNDING
from dp_adapter.core.types import RowKind

Sharing = Literal["regions", "words"]


@dataclass(frozen=True)
class Entity:
    """One person's words, by whose attention they share the picture (MIP-Adapter's name).

    Attributes:
        cond: the person's words, encoded as a text of their own [L, D]; uncond: an empty text [L, D].
        tokens: how many tokens the words have; these stand at ``1 : 1 + tokens``, behind the start token.
    """

    cond: Tensor
    uncond: Tensor
    tokens: int

    def of(self, kind: RowKind) -> Tensor:
        """The tokens that are looked at in a row of this kind: [t, D]."""
        return (self.cond if kind == "cond" else self.uncond)[1 : 1 + self.tokens]


class SiteSharing:
    """The persons' words at one site; their keys are computed once, and anew where ``to_k`` has changed.

    Args:
        entities: of the persons, in order.
        to_k: the site's own, as the text's keys come from it.
    """

    def __init__(self, entities: Sequence[Entity | None], to_k: Linear, heads: int) -> None:
        self._entities = entities
        self._to_k = to_k
        self._heads = heads
        self._made_from = LayerState(to_k)
        self._keys: dict[RowKind, list[Tensor]] = {}

    def forget(self) -> None:
        """Other weights were loaded into ``to_k``."""
        self._made_from.forget()

    def shares(self, q: Tensor, kind: RowKind, context: Tensor) -> list[Tensor]:
        """Each person's part of the positions of one row.

        Args:
            q: [N, I]; context: [.., D], the text as the site gets it.

        Returns:
            [N, 1] each, in the dtype of ``q``.
        """
        if self._made_from.changed():
            self._keys.clear()
        if kind not in self._keys:
            texts = [entity.of(kind).to(context) for entity in self._entities if entity is not None]
            self._keys[kind] = [self._to_k(tokens) for tokens in texts]
        maps = [map_words(q, k.to(q), self._heads) for k in self._keys[kind]]
        return [share.to(q) for share in shares(maps)]


def map_words(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Where the tokens of some words look, as a distribution over the positions; mean over heads and tokens.

    Args:
        q: [N, I], queries of one row; k: [t, I], keys of the words.

    Returns:
        [N] in float32, which sums to 1.
    """
    q, k = split_heads(q, heads), split_heads(k, heads)
    logits = k * k.shape[-1] ** -0.5 @ q.mT  # [heads, t, N]
    return logits.softmax(-1, dtype=torch.float32).mean((0, 1))


def shares(maps: Sequence[Tensor]) -> list[Tensor]:
    """Each person's part of every position: [N, 1] each, which sum to at most 1.

    Args:
        maps: [N] each, from ``map_words``.
    """
    stacked = torch.stack(list(maps))  # [K, N]
    total = stacked.sum(0).clamp(min=torch.finfo(stacked.dtype).tiny)
    return list((stacked / (total * ROUNDING))[..., None])


def text_weight(z: Tensor, weight: Tensor) -> Tensor:
    """How much each position takes of the identities, by the text's features there; its mean over the positions is 1.

    Args:
        z: [N, I], text attention of one row before W_o; weight: [1, I], trained.

    Returns:
        [N, 1] in float32.
    """
    wanted = torch.sigmoid(z.float() @ weight.float().mT)
    return wanted / wanted.mean(0, keepdim=True)
