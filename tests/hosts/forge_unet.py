"""A stand-in for the UNet of Forge: its names and its patch protocol around the real layers of a diffusers UNet.

Written from what docs say of the protocol (``attn1_patch``, ``attn1_output_patch``, ``middle_patch``, ``attn2_patch``,
``patches_replace`` under both key forms, ``attn2_output_patch``); ``DP_FORGE_PATH`` runs the tests in a real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Options = dict[str, Any]


class Linear(nn.Linear):
    """Forge's linear layers are classes of its own."""


def _linear(source: Any) -> Linear:
    linear = Linear(source.in_features, source.out_features, source.bias is not None)
    linear.load_state_dict(source.state_dict())
    return linear


def attention_function(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.heads: int = source.heads
        self.dim_head: int = source.inner_dim // source.heads
        self.to_q, self.to_k, self.to_v = _linear(source.to_q), _linear(source.to_k), _linear(source.to_v)
        self.to_out = nn.Sequential(_linear(source.to_out[0]), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context if value is None else value)
        return self.to_out(attention_function(q, k, v, self.heads))

    def replaced(self, patch: Any, x: Tensor, context: Tensor, value: Tensor, extra: Options) -> Tensor:
        return self.to_out(patch(self.to_q(x), self.to_k(context), self.to_v(value), extra))


class Block(nn.Module):
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(source.attn1), CrossAttention(source.attn2)
        self.norm1, self.norm2, self.norm3, self.ff = source.norm1, source.norm2, source.norm3, source.ff

    def forward(self, x: Tensor, context: Tensor, transformer_options: Options) -> Tensor:
        options = transformer_options
        patches: dict[str, list[Any]] = options.get("patches", {})
        extra = {key: value for key, value in options.items() if key not in {"patches", "patches_replace"}}
        extra |= {"n_heads": self.attn1.heads, "dim_head": self.attn1.dim_head}
        n = self.norm1(x)
        x = x + self._attention("attn1", n, n, options, extra)
        for patch in patches.get("middle_patch", []):
            x = patch(x, extra)
        x = x + self._attention("attn2", self.norm2(x), context, options, extra)
        return x + self.ff(self.norm3(x))

    def _attention(self, name: str, n: Tensor, context: Tensor, options: Options, extra: Options) -> Tensor:
        patches: dict[str, list[Any]] = options.get("patches", {})
        value = context
        for patch in patches.get(name + "_patch", []):
            n, context, value = patch(n, context, value, extra)
        attention = cast(CrossAttention, self.get_submodule(name))
        replacing: dict[Any, Any] = options.get("patches_replace", {}).get(name, {})
        long, short = (*options["block"], options["block_index"]), options["block"]
        key = long if long in replacing else short
        if key in replacing:
            n = attention.replaced(replacing[key], n, context, value, extra)
        else:
            n = attention(n, context, value)
        for patch in patches.get(name + "_output_patch", []):
            n = patch(n, extra)
        return n


class SpatialTransformer(nn.Module):
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = source.norm, source.proj_in, source.proj_out
        self.transformer_blocks = nn.ModuleList([Block(block) for block in source.transformer_blocks])

    def forward(self, x: Tensor, context: Tensor, options: Options) -> Tensor:
        size, residual, linear = x.shape[-2:], x, isinstance(self.proj_in, nn.Linear)
        x = self.norm(x)
        x = self.proj_in(x.flatten(2).mT) if linear else self.proj_in(x).flatten(2).mT
        for index, block in enumerate(self.transformer_blocks):
            options["block_index"] = index
            x = block(x, context=context, transformer_options=options)
        x = self.proj_out(x).mT.unflatten(-1, size) if linear else self.proj_out(x.mT.unflatten(-1, size))
        return x + residual


class Unet(nn.Module):
    """Takes the layers of a ``UNet2DConditionModel`` over."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.time_proj, self.time_embed = source.time_proj, source.time_embedding
        self.label_emb: nn.Module | None = getattr(source, "add_embedding", None)
        self.input_blocks = nn.ModuleList([nn.ModuleList([source.conv_in])])
        for block in source.down_blocks:
            for resnet, *attention in _rows(block):
                self.input_blocks.append(nn.ModuleList([resnet, *map(SpatialTransformer, attention)]))
            self.input_blocks.extend(nn.ModuleList([one]) for one in block.downsamplers or [])
        first, second = source.mid_block.resnets
        self.middle_block = nn.ModuleList([first, SpatialTransformer(source.mid_block.attentions[0]), second])
        self.output_blocks = nn.ModuleList()
        for block in source.up_blocks:
            rows = [nn.ModuleList([resnet, *map(SpatialTransformer, attention)]) for resnet, *attention in _rows(block)]
            rows[-1].extend(block.upsamplers or [])
            self.output_blocks.extend(rows)
        self.out = nn.Sequential(source.conv_norm_out, source.conv_act, source.conv_out)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        control: dict[str, list[Tensor]] | None = None,
        transformer_options: Options | None = None,
    ) -> Tensor:
        options: Options = {} if transformer_options is None else transformer_options
        patches = options.get("patches", {})
        options["original_shape"] = list(x.shape)
        emb = self.time_embed(self.time_proj(timesteps).to(x.dtype))
        if self.label_emb is not None:
            emb = emb + self.label_emb(y)
        kept: list[Tensor] = []
        for number, layers in enumerate(self.input_blocks):
            options["block"] = ("input", number)
            x = self._run(layers, x, emb, context, options, None)
            for patch in patches.get("input_block_patch", []):
                x = patch(x, options)
            kept.append(x)
        options["block"] = ("middle", 0)
        x = self._run(self.middle_block, x, emb, context, options, None)
        if control:
            x = x + control["middle"].pop()
        for number, layers in enumerate(self.output_blocks):
            options["block"] = ("output", number)
            skip = kept.pop()
            for patch in patches.get("output_block_patch", []):
                x, skip = patch(x, skip, options)
            size = kept[-1].shape[-2:] if kept else None
            x = self._run(layers, torch.cat([x, skip], 1), emb, context, options, size)
        return self.out(x)

    @staticmethod
    def _run(layers: Any, x: Tensor, emb: Tensor, context: Tensor, options: Options, size: Any) -> Tensor:
        for layer in layers:
            if isinstance(layer, SpatialTransformer):
                x = layer(x, context, options)
            elif hasattr(layer, "time_emb_proj"):
                x = layer(x, emb)
            elif type(layer).__name__ == "Upsample2D":
                x = layer(x, size)
            else:
                x = layer(x)
        return x


def _rows(block: Any) -> list[Sequence[Any]]:
    attentions = getattr(block, "attentions", None)
    return list(zip(block.resnets, attentions, strict=True)) if attentions else [[one] for one in block.resnets]
