"""ConsistentID's encoder of the parts of a face (arXiv 2404.16771).

Source: JackAILab/ConsistentID@e234008 ``attention.py`` FacialEncoder; parameter names are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dp_adapter.core.clip_tower import in_float
from dp_adapter.core.projection import Resampler
from dp_adapter.core.text.fusion import FuseModule

State = Mapping[str, Tensor]


class FacialEncoder(nn.Module):
    """CLIP's hidden states of P parts -> one embedding each, for the tokens of a word."""

    def __init__(self, state: State) -> None:
        super().__init__()
        prefixes = ("visual_projection.", "fuse_module.")
        projection, fuse = ({k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in prefixes)
        self.visual_projection = Resampler.like(projection)
        self.fuse_module = FuseModule(fuse)

    @classmethod
    def like(cls, state: State) -> FacialEncoder:
        return cls(state)

    def embed(self, parts: Tensor, unseen: Tensor) -> Tensor:
        """One embedding [D] for every part that is seen in a photo -> [k, D], photo by photo.

        Args:
            parts: [n, P, L, c]; a part that the photo does not show has the hidden states of zero pixels.
            unseen: of zero pixels [1, L, c].
        """
        flat = parts.flatten(0, 1)  # [n P, L, c]
        seen = (flat != unseen).flatten(1).any(1)
        if not seen.any():
            return torch.zeros(0, self.fuse_module.context)
        with torch.no_grad():
            return in_float(self.visual_projection, flat[seen]).flatten(0, 1)
