"""Narrow PuLID checkpoints and EVA02-CLIP towers in the layouts of the public files, all numbers random and seeded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from tests import tiny

Layout = Literal["official", "repack"]
Version = Literal["v1", "v1.1"]
EVA, EVA_OUT, EVA_INNER, DEPTH, SIDE, PATCH = 32, 24, 80, 21, 3, 14  # a tower
ARCFACE = 512
FACE = ARCFACE + EVA_OUT
QUERIES, WIDTH, INNER = 6, 40, 64  # of the IDFormer
SCALES = 5


def tensors(version: Version, layout: Layout = "official", seed: int = 7) -> dict[str, Tensor]:
    """A whole checkpoint for ``tiny.unet("sdxl")``, flat, in half precision."""
    encoder = _encoder_shapes() if version == "v1" else _former_shapes()
    prefix, site = {
        "official": ("id_adapter.", "id_adapter_attn_layers.{}.id_to_{}.weight"),
        "repack": ("image_proj.", "ip_adapter.{}.to_{}_ip.weight"),
    }[layout]
    shapes = {prefix + key: shape for key, shape in encoder.items()}
    shapes |= {
        site.format(2 * index + 1, name): (tiny.width_of("sdxl", index), tiny.CONTEXT)
        for index in range(tiny.SITES["sdxl"])
        for name in "kv"
    }
    return _filled(shapes, seed)


def _mlp(prefix: str, width: int, hidden: int, out: int) -> dict[str, Sequence[int]]:
    shapes: dict[str, Sequence[int]] = {}
    for number, (rows, columns) in zip((0, 3, 6), ((hidden, width), (hidden, hidden), (out, hidden)), strict=True):
        shapes |= {f"{prefix}{number}.weight": (rows, columns), f"{prefix}{number}.bias": (rows,)}
    return shapes | {f"{prefix}{number}.{name}": (hidden,) for number in (1, 4) for name in ("weight", "bias")}


def _encoder_shapes() -> dict[str, Sequence[int]]:
    shapes = _mlp("body.", FACE, 30, 5 * tiny.CONTEXT)
    for number in range(SCALES):
        shapes |= _mlp(f"mapping_{number}.", EVA, EVA, tiny.CONTEXT)
        shapes |= _mlp(f"mapping_patch_{number}.", EVA, EVA, tiny.CONTEXT)
    return shapes


def _former_shapes() -> dict[str, Sequence[int]]:
    shapes: dict[str, Sequence[int]] = {"latents": (1, QUERIES, WIDTH), "proj_out": (WIDTH, tiny.CONTEXT)}
    shapes |= _mlp("id_embedding_mapping.", FACE, 30, 5 * WIDTH)
    for number in range(SCALES):
        shapes |= _mlp(f"mapping_{number}.", EVA, EVA, WIDTH)
    for layer in range(2 * SCALES):
        attention, forward = f"layers.{layer}.0.", f"layers.{layer}.1."
        shapes |= {f"{attention}norm{i}.{name}": (WIDTH,) for i in (1, 2) for name in ("weight", "bias")}
        shapes |= {
            attention + "to_q.weight": (INNER, WIDTH),
            attention + "to_kv.weight": (2 * INNER, WIDTH),
            attention + "to_out.weight": (WIDTH, INNER),
            forward + "0.weight": (WIDTH,),
            forward + "0.bias": (WIDTH,),
            forward + "1.weight": (4 * WIDTH, WIDTH),
            forward + "3.weight": (WIDTH, 4 * WIDTH),
        }
    return shapes


def eva_tensors(seed: int = 8, width: int = EVA, depth: int = DEPTH) -> dict[str, Tensor]:
    """A whole EVA-CLIP file: the tower under ``visual.``, its rotation tables, and something of the text side."""
    shapes: dict[str, Sequence[int]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, SIDE**2 + 1, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (EVA_OUT, width),
        "head.bias": (EVA_OUT,),
    }
    for block in range(depth):
        own: dict[str, Sequence[int]] = {
            **{f"attn.{name}_proj.weight": (width, width) for name in "qkv"},
            "attn.q_bias": (width,),
            "attn.v_bias": (width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            **{f"mlp.{name}.weight": (EVA_INNER, width) for name in ("w1", "w2")},
            **{f"mlp.{name}.bias": (EVA_INNER,) for name in ("w1", "w2")},
            "mlp.w3.weight": (width, EVA_INNER),
            "mlp.w3.bias": (width,),
        }
        for norm, size in (
            ("norm1", width),
            ("norm2", width),
            ("attn.inner_attn_ln", width),
            ("mlp.ffn_ln", EVA_INNER),
        ):
            own |= {f"{norm}.weight": (size,), f"{norm}.bias": (size,)}
        shapes |= {f"blocks.{block}.{key}": shape for key, shape in own.items()}
    visual = _filled({f"visual.{key}": shape for key, shape in shapes.items()}, seed)
    # The rotation is computed anew; only the width of a head, here half of the tower's, is read from its table.
    tables = {f"visual.rope.freqs_{name}": torch.zeros(SIDE**2, width // 2) for name in ("cos", "sin")}
    return visual | tables | {"logit_scale": torch.ones(()), "text.ln_final.weight": torch.ones(4)}


def timm_names(file: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower of a file as open_clip's export of timm's model names it; it has no rotation tables."""
    renamed: dict[str, Tensor] = {}
    for key, value in file.items():
        if not key.startswith("visual.") or "rope" in key:
            continue
        name = key.replace("visual.", "visual.trunk.")
        for ours, theirs in (
            ("attn.q_bias", "attn.q_proj.bias"),
            ("attn.v_bias", "attn.v_proj.bias"),
            ("inner_attn_ln", "norm"),
            ("ffn_ln", "norm"),
            ("mlp.w1", "mlp.fc1_g"),
            ("mlp.w2", "mlp.fc1_x"),
            ("mlp.w3", "mlp.fc2"),
        ):
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


def _filled(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (torch.randn(tuple(shape), generator=generator) / math.sqrt(math.prod(shape[1:]))).half()
        for key, shape in shapes.items()
    }
