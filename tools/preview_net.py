"""The network of identity/faces/preview_net.py: a small U-Net that finds faces in blurred and noisy pictures."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 80, 80)
HEAD = 15  # face or not; centre x, y and log width, height of the box; five points


def _conv(before: int, after: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after))


class _Block(nn.Module):
    """Two convolutions around which the signal passes unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)

    def forward(self, signal: Tensor) -> Tensor:
        inner = torch.relu(self.first(signal))
        return torch.relu(signal + self.second(inner))


class PreviewNet(nn.Module):
    """[B, 3, S, S] RGB in 0..1, S a multiple of 32 -> heads [B, 15, S/4, S/4] and mask logits [B, 1, S/2, S/2]."""

    def __init__(self) -> None:
        super().__init__()
        before = (3, *WIDTHS[:-1])
        self.down = nn.ModuleList(_conv(a, b, 2) for a, b in zip(before, WIDTHS, strict=True))
        self.encode = nn.ModuleList([nn.Identity(), *(_Block(width) for width in WIDTHS[1:])])
        self.up = nn.ModuleList(_conv(b, a, kernel=1) for a, b in pairwise(WIDTHS))
        self.decode = nn.ModuleList([nn.Identity(), *(_Block(width) for width in WIDTHS[1:-1])])
        last = nn.Conv2d(48, HEAD, 1)
        assert last.bias is not None
        nn.init.constant_(last.bias, -3.0)  # centres are rare
        self.head = nn.Sequential(_conv(WIDTHS[1], 48), nn.ReLU(), last)
        self.mask = nn.Sequential(_conv(WIDTHS[0], 16), nn.ReLU(), nn.Conv2d(16, 1, 1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        signal = pictures * 4 - 2
        kept: list[Tensor] = []
        for down, encode in zip(self.down, self.encode, strict=True):
            signal = encode(torch.relu(down(signal)))
            kept.append(signal)
        heads = signal
        for level in (3, 2, 1, 0):
            raised = nn.functional.interpolate(self.up[level](signal), scale_factor=2.0, mode="bilinear")
            signal = self.decode[level](torch.relu(raised + kept[level]))
            if level == 1:
                heads = self.head(signal)
        return heads, self.mask(signal)
