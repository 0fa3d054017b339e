"""Initial weights of the autoencoder: they carry averaged colours through, and leave the rest free to learn.

ldm's GroupNorms have 32 groups whatever the width. With two or four channels a group they take the level of a plain
colour away, and a small network needs thousands of steps to learn a way around. So the colours travel in groups whose
mean is 0 and whose variance is not theirs: {x, -x, K, -K} in the encoder, where K is constant, and {x, -x, P, -P} or
{x + P, -x - P} in the decoder, where P is a ring along the picture's border that the zero padding makes. Then
silu(x) - silu(-x) = x gives the colour back (as in tools/tiny_base/tiny_vae.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

COLOURS = 3
JOINED = 64
"""Channels with which the decoder's groups have two: {x + P, -x - P}."""

CONSTANT = 3.0
RING = 8.0
SHARE = 0.234
"""Of a 16 x 16 grid's cells that lie at its border."""

SMOOTHED = 0.9
"""What is left of a joined ring after being enlarged once more."""

QUIET = 0.3
"""Factor on what the residual branches add at the start."""


@torch.no_grad()
def construct(vae: Any) -> None:
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.zero_()
    _encoder(vae)
    _decoder(vae)
    for name, channels in (("quant_conv", 8), ("post_quant_conv", 4)):
        vae.get_submodule(name).weight[:, :, 0, 0] = torch.eye(channels)


def _encoder(vae: Any) -> None:
    encoder = vae.encoder
    for name, conv in _convs(encoder):
        if name.endswith("conv2"):
            _quiet(conv)
        elif name.endswith("to_out.0"):
            conv.weight.zero_()
        elif name == "conv_in":
            for i in range(COLOURS):
                _row(conv, 4 * i, {i: 1.0})
                _row(conv, 4 * i + 1, {i: -1.0})
                _constant(conv, 4 * i)
        elif name.endswith("samplers.0.conv"):
            for i in range(4 * COLOURS):
                conv.weight[i] = 0
                conv.weight[i, i, :2, :2] = 0.25  # ldm pads right and below
        elif name.endswith("conv_shortcut"):
            for i in range(4 * COLOURS):
                _row(conv, i, {i: 1.0})
    out, unit = encoder.conv_out, CONSTANT / 2**0.5
    out.weight.mul_(0.5)
    for i in range(COLOURS):
        _row(out, i, {4 * i: unit, 4 * i + 1: -unit})


def _decoder(vae: Any) -> None:
    decoder = vae.decoder
    for name, conv in _convs(decoder):
        if name.endswith("conv2"):
            _quiet(conv)
        elif name.endswith("to_out.0"):
            conv.weight.zero_()
        elif name == "conv_in":
            for i in range(4 * COLOURS):
                _row(conv, i, {i // 4: (1.0, -1.0)[i % 4]} if i % 4 < 2 else {})
        elif name.endswith("samplers.0.conv"):
            _enlarging(conv)
        elif name.endswith("conv_shortcut"):
            for i in range(2 * COLOURS):
                _row(conv, i, {4 * (i // 2) + i % 2: 1.0, 4 * (i // 2) + i % 2 + 2: 1.0})
            for offset in (0, 1):
                _row(conv, 2 * COLOURS + offset, {2 + offset: 1.0})
    _ring(decoder.mid_block.resnets[0])
    joined = sum(conv.out_channels == JOINED for name, conv in _convs(decoder) if name.endswith("samplers.0.conv"))
    out, unit = decoder.conv_out, RING * SHARE**0.5 * SMOOTHED ** (joined - 1)
    out.weight.mul_(0.1)
    for i in range(COLOURS):
        _row(out, i, {2 * i: unit, 2 * i + 1: -unit, 2 * COLOURS: -unit, 2 * COLOURS + 1: unit})


def _enlarging(conv: Any) -> None:
    """Bilinear, after the repetition of pixels; a ring stays sharp, but where it has been added to a colour."""
    kernel = torch.tensor([0.25, 0.5, 0.25])
    joined = conv.out_channels == JOINED
    for i in range(2 * COLOURS + 2 if joined else 4 * COLOURS):
        _row(conv, i, {i: 1.0})
        if joined or i % 4 < 2:
            conv.weight[i, i] = kernel[:, None] * kernel


def _ring(resnet: Any) -> None:
    """Adds P to the channels 4 i + 2, and -P to 4 i + 3."""
    spare, hidden = resnet.norm1.num_channels - 1, 0
    resnet.norm1.weight[spare], resnet.norm1.bias[spare] = 0.0, 4.0
    resnet.conv1.weight[: hidden + 4] = 0
    resnet.conv1.weight[hidden, spare] = -1.0
    resnet.conv1.weight[hidden, spare, 1, 1] = 8.0
    resnet.norm2.weight[hidden], resnet.norm2.bias[hidden] = 1.0, 0.0
    group = SHARE / 4  # of four channels, three are 0: the ring's own level after the norm
    level = (1 - group) / (group * (1 - group)) ** 0.5
    for i in range(COLOURS):
        for offset, sign in ((2, 1.0), (3, -1.0)):
            _row(resnet.conv2, 4 * i + offset, {hidden: sign * RING / level})


def _convs(root: nn.Module) -> list[tuple[str, Any]]:
    return [(name, m) for name, m in root.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _quiet(conv: Any) -> None:
    conv.weight *= QUIET
    conv.weight[: 4 * COLOURS] = 0


def _row(conv: Any, out: int, columns: dict[int, float]) -> None:
    """Output channel ``out`` is a sum of input channels, and nothing else."""
    conv.weight[out] = 0
    centre = conv.weight.shape[-1] // 2
    for column, value in columns.items():
        conv.weight[out, column, centre, centre] = value


def _constant(conv: Any, first: int) -> None:
    for offset, sign in ((2, 1.0), (3, -1.0)):
        conv.weight[first + offset] = 0
        conv.bias[first + offset] = sign * CONSTANT
