"""Narrow files of the families that are fused on the text side, with the numbers that the official classes had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from dp_adapter.hosts.attach.sites import Base, site_names
from tests import tiny
from tests.weights.numbers import weights

Shapes = dict[str, Sequence[int]]
TEXT = 256  # PhotoMaker's perceiver has heads of 128
PARTS_TEXT = 128
_VISION, _MLP, _TOKENS = 128, 192, 5


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    return {**shapes, f"{name}.bias": (outputs,)} if bias else shapes


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def fuse_shapes(width: int) -> Shapes:
    """``fuse_module.*``"""
    shapes: Shapes = _norm("fuse_module.layer_norm", width)
    for name, inputs in (("mlp1", 2 * width), ("mlp2", width)):
        part = f"fuse_module.{name}"
        shapes |= _norm(f"{part}.layernorm", inputs) | _linear(f"{part}.fc1", width, inputs)
        shapes |= _linear(f"{part}.fc2", width, width)
    return shapes


def _tower_shapes() -> Shapes:
    shapes: Shapes = {
        "embeddings.class_embedding": (_VISION,),
        "embeddings.patch_embedding.weight": (_VISION, 3, 14, 14),
        "embeddings.position_embedding.weight": (_TOKENS, _VISION),
        **_norm("pre_layrnorm", _VISION),
        **_norm("post_layernorm", _VISION),
    }
    for number in range(2):
        layer = f"encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", _VISION, _VISION)
        shapes |= _norm(f"{layer}.layer_norm1", _VISION) | _norm(f"{layer}.layer_norm2", _VISION)
        shapes |= _linear(f"{layer}.mlp.fc1", _MLP, _VISION) | _linear(f"{layer}.mlp.fc2", _VISION, _MLP)
    return {f"vision_model.{key}": shape for key, shape in shapes.items()}


def perceiver_shapes(features: int, width: int, inner: int, depth: int, out: int) -> Shapes:
    """A perceiver's layers, its input and its output."""
    shapes: Shapes = _linear("proj_in", width, features) | _linear("proj_out", out, width) | _norm("norm_out", out)
    for number in range(depth):
        attention, feed_forward = f"layers.{number}.0", f"layers.{number}.1"
        shapes |= _norm(f"{attention}.norm1", width) | _norm(f"{attention}.norm2", width)
        shapes |= _linear(f"{attention}.to_q", inner, width, bias=False)
        shapes |= _linear(f"{attention}.to_kv", 2 * inner, width, bias=False)
        shapes |= _linear(f"{attention}.to_out", width, inner, bias=False)
        shapes |= _norm(f"{feed_forward}.0", width) | _linear(f"{feed_forward}.1", 4 * width, width, bias=False)
        shapes |= _linear(f"{feed_forward}.3", width, 4 * width, bias=False)
    return shapes


def photomaker_shapes(version: Literal["v1", "v2"], text: int = TEXT, first: int = 96) -> Shapes:
    """``id_encoder`` of a file; the two projections of the tower are ``first`` and the rest of ``text`` wide."""
    shapes = _tower_shapes() | fuse_shapes(text)
    shapes |= {"visual_projection.weight": (first, _VISION), "visual_projection_2.weight": (text - first, _VISION)}
    if version == "v2":
        own = _linear("token_proj.0", 2048, 512) | _linear("token_proj.2", 2 * text, 2048) | _norm("token_norm", text)
        layers = perceiver_shapes(_VISION, text, max(text, 128), 4, text)
        own |= {f"perceiver_resampler.{key}": shape for key, shape in layers.items()}
        shapes |= {f"qformer_perceiver.{key}": shape for key, shape in own.items()}
    return shapes


def photomaker_lora(style: Literal["processor", "lora", "peft"] = "processor", rank: int = 2) -> dict[str, Tensor]:
    """``lora_weights`` of a file in one of diffusers' namings, in an order that is not the UNet's."""
    patterns = {
        "processor": "unet.{path}.processor.{linear}_lora.{part}.weight",
        "lora": "unet.{path}.{linear}.lora.{part}.weight",
        "peft": "unet.{path}.{linear}.lora_{part}.weight",
    }
    shapes: Shapes = {}
    for site in reversed(site_names("sdxl")):
        width = tiny.width_of("sdxl", site.index)
        for number in (1, 2):
            for linear in ("to_q", "to_k", "to_v", "to_out"):
                inputs = tiny.CONTEXT if number == 2 and linear in {"to_k", "to_v"} else width
                for part, shape in (("down", (rank, inputs)), ("up", (width, rank))):
                    spelled = {"down": "A", "up": "B"}[part] if style == "peft" else part
                    out = "to_out" if style == "processor" or linear != "to_out" else "to_out.0"
                    name = out if linear == "to_out" else linear
                    path = f"{site.diffusers}.attn{number}"
                    shapes[patterns[style].format(path=path, linear=name, part=spelled)] = shape
    return weights(shapes, "lora.")


def photomaker_tensors(version: Literal["v1", "v2"], text: int = TEXT, first: int = 96) -> dict[str, dict[str, Tensor]]:
    """A whole file, nested as the public ones."""
    return {
        "id_encoder": weights(photomaker_shapes(version, text, first), f"photomaker-{version}."),
        "lora_weights": photomaker_lora(),
    }


def consistentid_tensors(base: Base = "sd15", text: int = PARTS_TEXT) -> dict[str, dict[str, Tensor]]:
    """A whole file, nested as the public ones."""
    tokens = _linear("proj.0", 2 * tiny.FACE, tiny.FACE) | _linear("proj.2", 4 * text, 2 * tiny.FACE)
    tokens |= _norm("norm", text)
    layers = perceiver_shapes(tiny.CLIP, text, max(text, 64), 4, text)
    tokens |= {f"perceiver_resampler.{key}": shape for key, shape in layers.items()}
    parts: Shapes = {"latents": (1, 1, 128), **perceiver_shapes(tiny.CLIP, 128, 128, 2, text)}
    facial = {f"visual_projection.{key}": shape for key, shape in parts.items()} | fuse_shapes(text)
    return {
        "image_proj" if base == "sd15" else "image_proj_model": weights(tokens, "projplus."),
        "adapter_modules": weights(_layer_shapes(base, text), "layers."),
        "FacialEncoder": weights(facial, "facial."),
    }


def _layer_shapes(base: Base, text: int, rank: int = 2) -> Shapes:
    shapes: Shapes = {}
    for number in range(2 * tiny.SITES[base]):
        width = tiny.width_of(base, number // 2)
        for name in ("q", "k", "v", "out"):
            inputs = text if number % 2 and name in {"k", "v"} else width
            shapes[f"{number}.to_{name}_lora.down.weight"] = (rank, inputs)
            shapes[f"{number}.to_{name}_lora.up.weight"] = (width, rank)
        if number % 2:
            shapes |= {f"{number}.to_{name}_ip.weight": (width, text) for name in "kv"}
    return shapes
