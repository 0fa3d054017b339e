"""Weights that fit a base model to other sizes of pictures, while an identity acts (ResAdapter, 2403.02084)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ConvLowRank:
    """A LoRA of one convolution: y += scale * up(down(x)), with the convolution's own stride and padding.

    Attributes:
        down: [r, in, k, k]; up: [out, r, 1, 1].
        scale: alpha / r.
    """

    down: Tensor
    up: Tensor
    scale: float

    def to(self, like: Tensor) -> ConvLowRank:
        """The same in the dtype and on the device of a tensor."""
        return replace(self, down=self.down.to(like), up=self.up.to(like))

    def term(self, x: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        """[n, in, h, w], of the weights' dtype and device -> [n, out, h', w']"""
        return self.scale * F.conv2d(F.conv2d(x, self.down, stride=stride, padding=padding), self.up)


@dataclass(frozen=True)
class SizeCompanion:
    """A ResAdapter.

    Attributes:
        convs: of the down- and upsamplers, by their path in diffusers' UNet.
        norms: weight and bias [C] of the residual blocks' group norms, likewise; empty where only the LoRA is there.
    """

    convs: Mapping[str, ConvLowRank]
    norms: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=lambda: MappingProxyType({}))


LayerPath = Callable[[str], str]
"""From a module's path in diffusers' UNet to its path in a host's."""
