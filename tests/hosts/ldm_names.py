"""Writes diffusers pipelines as single files in the naming of CompVis' and Stability's code, for tests of loading."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tools.small_base.ldm_names import clip, unet, vae


def write(pipeline: Any, path: Path) -> Path:
    """One ``.safetensors`` or ``.ckpt`` file with everything that the pipeline holds."""
    state = unet(pipeline.unet) | vae(pipeline.vae)
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
