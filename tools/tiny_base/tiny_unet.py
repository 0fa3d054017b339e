"""An untrained UNet of SD1.5's layout, narrow, whose samples are clouds of colour that prompt and identity shape.

Random weights alone sample to noise. So four channels of the residual stream (the lane) carry the latents untouched by
the random branches, averaged on the way down and smoothed on the way up. The predicted noise is the lane's sum with
one weight per octave, ``DAMPING``, plus a bounded random field from the other channels, where the attentions act.

With eps = c x the sampler's ODE scales a component by exp(-c asinh(k)) between noise level k and the picture, so a
small c lets large structures live and a large c lets fine noise die.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from tools.tiny_base.random_weights import fill, modules_of, uniform
from tools.tiny_base.tiny_vae import K, join

CONFIG: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": 64,
    "attention_head_dim": (2, 4, 8, 8),  # heads; few where cells are many
}

LANE = 4
OUT_LANE = 16
"""Channels of the lane at the end, where every latent stands as {y, -y, K, -K}."""

DAMPING = (2.0, 1.1, 0.65, 0.25)
"""c of each octave of the latent grid, from one cell to eight."""

FIELD = 0.05
"""Size of the random field in the predicted noise."""

BRANCH = (0.15, 0.5, 1.0, 1.0)
"""Gain of the random branches at each halving; low where the field would be fine-grained."""

SHARPNESS = 4.0
"""Factor on queries and keys of the cross-attentions, so that cells look at different tokens."""


@torch.no_grad()
def construct(unet: nn.Module, seed: int) -> None:
    """Writes the weights into a ``UNet2DConditionModel`` of ``CONFIG``."""
    fill(unet, seed)
    for name, module in modules_of(unet):
        level = level_of(name)
        if name.endswith(("conv2", "proj_out")):
            assert isinstance(module, nn.Conv2d | nn.Linear)
            module.weight *= BRANCH[level]
            module.weight[: OUT_LANE if name.startswith("up_blocks.3.") and name.split(".")[3] == "2" else LANE] = 0
        elif name.endswith(("attn2.to_q", "attn2.to_k")):
            assert isinstance(module, nn.Linear)
            module.weight *= math.sqrt(SHARPNESS)
        elif name.endswith("attn2.to_out.0"):
            assert isinstance(module, nn.Linear)
            module.weight *= 2
        elif name.endswith(("samplers.0.conv", "conv_shortcut")) or name == "conv_in":
            assert isinstance(module, nn.Conv2d)
            module.weight[:LANE] = 0
            module.weight[LANE:, :LANE] *= 0.25
            _carry(name, module)
    _write_output(unet, seed)


def level_of(name: str) -> int:
    """How often the latent grid is halved where a module stands."""
    block = re.match(r"(down|up)_blocks\.(\d)", name)
    if block:
        return int(block[2]) if block[1] == "down" else 3 - int(block[2])
    return 3 if name.startswith("mid_block") else 0


def _carry(name: str, conv: nn.Conv2d) -> None:
    """The lane's row of the convolutions on the residual stream."""
    lane = range(LANE)
    if name.endswith("downsamplers.0.conv"):
        for i in lane:
            conv.weight[i, i, 1:, 1:] = 0.25
    elif name.endswith("upsamplers.0.conv"):
        # Zero padding takes this kernel's outer tap from the border: a wider one would leave a grey frame.
        kernel = torch.tensor([0.15, 0.7, 0.15])
        for i in lane:
            conv.weight[i, i] = kernel[:, None] * kernel
    elif not name.startswith("up_blocks"):
        for i in lane:
            conv.weight[i, i, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    else:
        _add_octave(name, conv)


def _add_octave(name: str, shortcut: nn.Conv2d) -> None:
    """The lane goes on from the block before; once per level the skip's lane joins it with its octave's weight."""
    level, resnet = level_of(name), int(name.split(".")[3])
    widths = CONFIG["block_out_channels"]
    hidden = widths[0] if level == 0 and resnet else widths[-1]  # the skip's channels come after these
    octave = DAMPING[level] - (DAMPING[level - 1] if level else 0.0)
    joins = resnet == (2 if level == 0 else 0)
    last = level == 0 and resnet == 2
    if last:
        shortcut.weight[:OUT_LANE] = 0
    for i in range(LANE):
        for row, sign in ((4 * i, 1.0), (4 * i + 1, -1.0)) if last else ((i, 1.0),):
            shortcut.weight[row, i] = sign * (octave if level == 3 and joins else 1.0)
            if joins and level < 3:
                shortcut.weight[row, hidden + i] = sign * octave


def _write_output(unet: nn.Module, seed: int) -> None:
    shortcut = unet.get_submodule("up_blocks.3.resnets.2.conv_shortcut")
    conv_out = unet.get_submodule("conv_out")
    assert isinstance(shortcut, nn.Conv2d)
    assert isinstance(conv_out, nn.Conv2d)
    assert shortcut.bias is not None
    for i in range(LANE):
        shortcut.bias[4 * i + 2] = K
        shortcut.bias[4 * i + 3] = -K
    conv_out.weight.zero_()
    field = (LANE, conv_out.in_channels - OUT_LANE)
    conv_out.weight[:, OUT_LANE:, 1, 1] = uniform("field", seed, field, FIELD / math.sqrt(field[1]))
    join(conv_out, LANE, 1.0)
