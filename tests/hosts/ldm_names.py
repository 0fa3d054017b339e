"""Writes diffusers pipelines as single files in the naming of CompVis' and Stability's code, for tests of loading."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

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


def write(pipeline: Any, path: Path) -> Path:
    """One ``.safetensors`` or ``.ckpt`` file with everything that the pipeline holds."""
    state = unet(pipeline.unet) | vae(pipeline.vae.state_dict())
    if hasattr(pipeline, "text_encoder_2"):
        state |= clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        state |= open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    else:
        state |= clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    state = {key: value.contiguous().clone() for key, value in state.items()}
    if path.suffix == ".ckpt":
        torch.save({"state_dict": state, "global_step": 1}, path)
    else:
        save_file(state, str(path))
    return path


def unet(module: Any) -> dict[str, torch.Tensor]:
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


def _place_upsamplers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The upsampler comes third in its block, second where the block has no attention."""
    placed = {}
    for key, value in state.items():
        before = key.split("UP")[0]
        second = any(other.startswith(before + "1.") for other in state)
        placed[key.replace("UP", "2" if second else "1")] = value
    return placed


def vae(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {}
    for key, value in state.items():
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


def clip(module: Any, prefix: str) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}text_model.{key.removeprefix('text_model.')}": value for key, value in module.state_dict().items()
    }


def open_clip(module: Any, prefix: str) -> dict[str, torch.Tensor]:
    state = {key.removeprefix("text_model."): value for key, value in module.state_dict().items()}
    named = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
    }
    for key, value in state.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", key)
        if not layer or ".k_proj." in key or ".v_proj." in key:
            continue
        name = layer[2].replace("layer_norm", "ln_").replace("fc1", "c_fc").replace("fc2", "c_proj")
        name = name.replace("self_attn", "attn")
        if ".q_proj." in key:
            value = torch.cat([state[key.replace("q_proj", f"{which}_proj")] for which in "qkv"])  # noqa: PLW2901
            name = name.replace("q_proj.", "in_proj_")
        named[f"transformer.resblocks.{layer[1]}.{name}"] = value
    return {prefix + key: value for key, value in named.items()}
