"""An autoencoder of SD1.5's layout whose weights are written by hand: a latent cell is the mean colour of 8x8 pixels.

Downsampling averages, upsampling interpolates, and most residual branches are silent, so channels travel unchanged.
Before the last convolution stand a GroupNorm and a SiLU, which a colour x passes unharmed in a group {x, -x, K, -K}:
with K >> x the variance is constant, and SiLU(x) - SiLU(-x) = x.

Interpolating with zero padding takes a quarter of a colour at the picture's border. The same padding makes a channel
that knows the border, G = 0 there and -L elsewhere, and SiLU(x + G) - SiLU(-x + G) is x there and 0 elsewhere: two
residual branches after every upsampling give back what was taken, above and below, then left and right.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tools.tiny_base.random_weights import modules_of

CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (16, 16, 16, 16),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}

K = 300.0
"""Level of the constant channels: 1 / 300 of it is far above float16's resolution, and 300 below its largest number."""

_GATE = 30.0
"""L, in colours: several times the largest colour."""

_CLOSED = 20.0
"""What a closed gate reads before the SiLU, which is then zero but for 1e-8."""

GAIN = 2.0
"""Latents per colour: colours in [-1, 1] have a standard deviation near 1/2, latents should have 1."""


@torch.no_grad()
def construct(vae: nn.Module) -> None:
    """Writes the weights into an ``AutoencoderKL`` of ``CONFIG``."""
    for parameter in vae.parameters():
        parameter.zero_()
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            module.weight.fill_(1.0)
    for name, module in modules_of(vae):
        if isinstance(module, nn.Conv2d) and name.endswith("downsamplers.0.conv"):
            # diffusers pads right and below only, so the 2x2 cell is the kernel's upper left.
            for channel in range(module.out_channels):
                module.weight[channel, channel, :2, :2] = 0.25
        elif isinstance(module, nn.Conv2d) and name.endswith("upsamplers.0.conv"):
            _interpolate(module)
    for block in (1, 2, 3):
        for resnet, gate in ((0, 12), (1, 14)):
            _restore_border(vae.get_submodule(f"decoder.up_blocks.{block}.resnets.{resnet}"), gate)
    latent_per_colour = GAIN / CONFIG["scaling_factor"]
    split(_conv(vae, "encoder.conv_in"), colours=3, gain=1.0)
    join(_conv(vae, "encoder.conv_out"), colours=3, gain=latent_per_colour)
    bias = _conv(vae, "encoder.conv_out").bias
    assert bias is not None
    bias[4:] = -30.0  # log variance: the latent is its mean
    for name, channels in (("quant_conv", 8), ("post_quant_conv", 4)):
        _conv(vae, name).weight[:, :, 0, 0] = torch.eye(channels)
    split(_conv(vae, "decoder.conv_in"), colours=3, gain=1 / latent_per_colour)
    join(_conv(vae, "decoder.conv_out"), colours=3, gain=1.0)


def _interpolate(conv: nn.Conv2d) -> None:
    """Bilinear, together with the repetition before it; the last group becomes {Gv, -Gv, Gh, -Gh}."""
    kernel = torch.tensor([0.25, 0.5, 0.25])
    for i in range(3):
        for channel in (4 * i, 4 * i + 1):
            conv.weight[channel, channel] = kernel[:, None] * kernel
        for channel in (4 * i + 2, 4 * i + 3):
            conv.weight[channel, channel, 1, 1] = 1
    for offset, sign in ((0, 1.0), (1, -1.0)):
        # Of K: -1 + 1 - 1 inside, and 1 - 1 where the padding hides a neighbour.
        conv.weight[12 + offset, 2, :, 1] = sign * torch.tensor([-1.0, 1.0, -1.0])
        conv.weight[14 + offset, 2, 1, :] = sign * torch.tensor([-1.0, 1.0, -1.0])


def _restore_border(resnet: nn.Module, gate: int) -> None:
    """Adds a third of each colour where the gate's channel G, normalised to 0 and -1, is open."""
    conv1, conv2, norm2 = _conv(resnet, "conv1"), _conv(resnet, "conv2"), resnet.get_submodule("norm2")
    assert isinstance(norm2, nn.GroupNorm)
    norm2.weight.fill_(_CLOSED)
    for i in range(3):
        # {x + G, -x + G, x - G, -x - G}: mean 0, standard deviation L.
        for row, colour, border in ((0, 1, 1), (1, -1, 1), (2, 1, -1), (3, -1, -1)):
            for offset, sign in ((0, 1.0), (1, -1.0)):
                conv1.weight[4 * i + row, 4 * i + offset, 1, 1] = sign * colour * K / math.sqrt(2)
                conv1.weight[4 * i + row, gate + offset, 1, 1] = sign * border * _GATE
                conv2.weight[4 * i + row % 2, 4 * i + offset, 1, 1] = sign * (-1) ** row * _GATE / _CLOSED / 3


def split(conv: nn.Conv2d, colours: int, gain: float) -> None:
    """Channel i to the group {x, -x, K, -K} at 4 i."""
    assert conv.bias is not None
    centre = conv.kernel_size[0] // 2
    for i in range(colours):
        for offset, sign in ((0, 1.0), (1, -1.0)):
            conv.weight[4 * i + offset, i, centre, centre] = sign * gain
            conv.bias[4 * i + 2 + offset] = sign * K


def join(conv: nn.Conv2d, colours: int, gain: float) -> None:
    """The group at 4 i, normalised and through SiLU, back to channel i."""
    for i in range(colours):
        for offset, sign in ((0, 1.0), (1, -1.0)):
            conv.weight[i, 4 * i + offset, 1, 1] = sign * gain * K / math.sqrt(2)


def _conv(vae: nn.Module, name: str) -> nn.Conv2d:
    conv = vae.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return conv
