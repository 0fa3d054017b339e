"""The parts of a diffusers pipeline in the naming of CompVis' and Stability's code.

The way back of ``convert_ldm_*`` in diffusers@0.42.1 ``loaders/single_file_utils.py``.
"""

from __future__ import annotations

import re
from typing import Any

import torch

State = dict[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def unet(module: Any) -> State:
    """A ``UNet2DConditionModel`` of SD1.5's or SDXL's block layout, two resnets to a block, of any widths."""
    state = _place_upsamplers({_unet_name(key): value for key, value in module.state_dict().items()})
    return {"model.diffusion_model." + key: value for key, value in state.items()}


def _unet_name(key: str) -> str:
    for ours, theirs in TOP.items():
        if key.startswith(ours + "."):
            return theirs + key.removeprefix(ours)
    parts = re.fullmatch(r"(\w+?_blocks?(?:\.\d)?)\.(\w+)\.(.*)", key)
    assert parts, key
    block, kind, rest = parts.groups()
    number = int(rest.split(".")[0])
    tail = rest.split(".", 1)[1]
    if kind == "resnets":
        part, leaf = tail.rsplit(".", 1)
        tail = f"{RESNET[part]}.{leaf}"
    level = int(block[-1]) if block != "mid_block" else 0
    if kind == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op.{tail.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.UP.{tail}"
    if block == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{tail}"
    place = 3 * level + number + (block.startswith("down"))
    return f"{'input' if block.startswith('down') else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{tail}"


def _place_upsamplers(state: State) -> State:
    """The upsampler comes third in its block, second where the block has no attention."""
    placed: State = {}
    for key, value in state.items():
        before = key.split("UP")[0]
        second = any(other.startswith(before + "1.") for other in state)
        placed[key.replace("UP", "2" if second else "1")] = value
    return placed


def vae(module: Any) -> State:
    """An ``AutoencoderKL`` of four levels. ldm writes the attention's layers as 1x1 convolutions."""
    named: State = {}
    for key, value in module.state_dict().items():
        name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", key)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        name = name.replace("to_out.0", "proj_out").replace("conv_norm_out", "norm_out")
        name = re.sub(r"to_([qkv])", r"\1", name).replace("conv_shortcut", "nin_shortcut")
        is_linear = "attn_1" in name and value.ndim == 2
        named["first_stage_model." + name] = value[:, :, None, None] if is_linear else value
    return named


def clip(module: Any, prefix: str) -> State:
    """A ``CLIPTextModel``; transformers 5.6 took ``text_model`` out of its keys."""
    return {
        f"{prefix}text_model.{key.removeprefix('text_model.')}": value for key, value in module.state_dict().items()
    }
