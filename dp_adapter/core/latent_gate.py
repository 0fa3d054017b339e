"""Fine-Grained Feature-Level Blending over a whole picture: a gate that sees, in what is predicted, where a face forms.

[ours] It reads the predicted latents after every call of the UNet, so the identity has its region from the second call
on, long before a decoded preview shows anything, and for a thousandth of a call's cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from dp_adapter.core.regions.attention_maps import components

CERTAIN = 0.5
"""What a gate says of a cell from which on there is a face."""

Middle = tuple[float, float]
"""Row and column of a face's middle."""

_UNLIKELY, _SURE = 0.3, 0.7  # of what a gate says: a person acts in a cell not at all, and fully
_LEAST = 0.15  # of the largest face's cells, below which it is no further face
_DILATIONS = (1, 2, 4, 2)
_OCTAVES = 4


class LatentGate(nn.Module):
    """How likely each cell of predicted latents is part of a face, at any size of the picture.

    Args:
        channels: c, of the latents; width: of the hidden layers.
    """

    def __init__(self, channels: int = 4, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels + 2 * _OCTAVES, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in _DILATIONS)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    @property
    def channels(self) -> int:
        """Of the latents it reads."""
        return self.first.in_channels - 2 * _OCTAVES

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> LatentGate:
        """An empty one of the shapes in a state."""
        width, inputs = state["first.weight"].shape[:2]
        return cls(inputs - 2 * _OCTAVES, width)

    def logits(self, predicted: Tensor, progress: Tensor) -> Tensor:
        """Latents x0 [S, c, h, w] as the UNet scales them, progress [S] -> [S, 1, h, w]."""
        angles = math.pi * progress[:, None] * 2.0 ** torch.arange(_OCTAVES, device=progress.device)
        time = torch.cat([angles.sin(), angles.cos()], 1)[:, :, None, None].expand(-1, -1, *predicted.shape[-2:])
        hidden = nn.functional.silu(self.first(torch.cat([predicted, time.to(predicted)], 1)))
        for layer in self.layers:
            hidden = hidden + nn.functional.silu(layer(hidden))
        return cast(Tensor, self.last(hidden))

    @torch.no_grad()
    def forward(self, predicted: Tensor, progress: float) -> Tensor:
        """Where the person acts: latents x0 [S, c, h, w] on any device -> [S, h, w] in 0..1, in float32 on the CPU."""
        like = self.last.weight
        latents = predicted.to(like)
        return self.logits(latents, torch.full((len(latents),), progress).to(like)).sigmoid()[:, 0].float()


def choose_face(share: Tensor, last: Middle | None) -> tuple[Tensor, Middle] | None:
    """Of the faces that a gate sees in a picture the one that is nearest to where it was; the leftmost at first.

    Args:
        share: [h, w], what the gate says; last: where the face was, None where it was not seen yet.

    Returns:
        Where the person acts [h, w] in 0..1, fully where there surely is a face, not where it is unlikely or another
        face is nearer; and where the face is now. None where no face shows.
    """
    blobs = components(share > CERTAIN)
    blobs = [blob for blob in blobs if blob.sum() >= _LEAST * blobs[0].sum()]
    if not blobs:
        return None
    sure = ((share - _UNLIKELY) / (_SURE - _UNLIKELY)).clamp(0, 1)
    middles = torch.stack([blob.nonzero().float().mean(0) for blob in blobs])  # [faces, 2]
    distance = middles[:, 1] if last is None else (middles - torch.tensor(last)).square().sum(1)
    chosen = int(distance.argmin())
    cells = torch.ones_like(share).nonzero().float().view(*share.shape, 1, 2)
    nearest = (cells - middles).square().sum(-1).argmin(-1)  # [h, w]
    return sure * (nearest == chosen), (float(middles[chosen, 0]), float(middles[chosen, 1]))
