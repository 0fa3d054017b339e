"""Tiny real models: UNets in the exact block layout of SD1.5 and SDXL, adapters for them, files in public containers.

Widths are narrow, all numbers random and seeded; names, layer counts and nesting are the real ones. Shapes of the files
are written out from the published layouts, not taken from the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter, SiteAdapter, TextQuerySiteAdapter
from dp_adapter.core.blend import FeatureBlending, TextConsistency
from dp_adapter.core.projection import FaceProjection
from dp_adapter.core.text.sharing_by_words import Entity
from dp_adapter.core.types import Row, Tokens
from dp_adapter.hosts.attach.sites import Base, site_names

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

CONTEXT = 48  # width of the text context and of the identity tokens
TEXT_TOKENS = 7
FACE = 24  # width of a face embedding
CLIP = 40  # width of CLIP's embeddings and hidden states
TIMESTEP = 400.0
ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)  # of SD1.5 and SDXL
CHANNELS: Mapping[Base, tuple[int, ...]] = {"sd15": (16, 32, 32, 48), "sdxl": (16, 32, 48)}
SITES: Mapping[Base, int] = {"sd15": 16, "sdxl": 70}

Container = Literal["safetensors", "zip", "legacy"]
Nested = Mapping[str, Mapping[str, Tensor]]


def unet(base: Base, seed: int = 0) -> UNet2DConditionModel:
    """A UNet2DConditionModel in float32 with the layout of the base model, every parameter random."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    shared: dict[str, Any] = {
        "sample_size": 16,
        "layers_per_block": 2,
        "block_out_channels": CHANNELS[base],
        "cross_attention_dim": CONTEXT,
        "norm_num_groups": 8,
    }
    if base == "sd15":
        own: dict[str, Any] = {"attention_head_dim": 4}
    else:
        own = {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (2, 4, 6),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": CONTEXT + 6 * 8,
        }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UNet2DConditionModel(**shared, **own)
        with torch.no_grad():
            for parameter in model.parameters():
                # Initial biases are zero and norms neutral, which would hide mistakes with either.
                parameter.add_((0.2 if parameter.ndim < 2 else 0.02) * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def width_of(base: Base, index: int) -> int:
    """Channels of a site of ``unet(base)``."""
    return CHANNELS[base][site_names(base)[index].halvings]


@dataclass(frozen=True)
class Inputs:
    """One call of a UNet: latents [R, 4, h, w], context [R, L, D]; SDXL's pooled text [R, D] and time ids [R, 6]."""

    latents: Tensor
    context: Tensor
    timestep: float = TIMESTEP
    text_embeds: Tensor | None = None
    time_ids: Tensor | None = None

    def rows(self, order: Sequence[int]) -> Inputs:
        """The same call with its rows picked in another order."""
        picked = list(order)
        return Inputs(
            self.latents[picked],
            self.context[picked],
            self.timestep,
            None if self.text_embeds is None else self.text_embeds[picked],
            None if self.time_ids is None else self.time_ids[picked],
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(
            self.latents.to(dtype),
            self.context.to(dtype),
            self.timestep,
            None if self.text_embeds is None else self.text_embeds.to(dtype),
            None if self.time_ids is None else self.time_ids.to(dtype),
        )


def inputs(base: Base, rows: Sequence[Row], size: tuple[int, int] = (16, 16), seed: int = 1) -> Inputs:
    """Latents by sample; text by kind, sample and how many such rows came before: a row is the same in every layout."""
    latents, context, pooled = (
        torch.empty(len(rows), *shape) for shape in ((4, *size), (TEXT_TOKENS, CONTEXT), (CONTEXT,))
    )
    for number, row in enumerate(rows):
        latents[number].normal_(generator=torch.Generator().manual_seed(1000 * seed + row.sample))
        kind = ("cond", "uncond", "text").index(row.kind)
        text = 100 * kind + 10 * row.sample + list(rows[:number]).count(row)
        generator = torch.Generator().manual_seed(1000 * seed + 500 + text)
        context[number].normal_(generator=generator)
        pooled[number].normal_(generator=generator)
    if base == "sd15":
        return Inputs(latents, context)
    time_ids = torch.tensor([[size[0] * 8.0, size[1] * 8.0, 0, 0, size[0] * 8.0, size[1] * 8.0]])
    return Inputs(latents, context, text_embeds=pooled, time_ids=time_ids.expand(len(rows), -1))


def call(model: nn.Module, given: Inputs, timestep: float | Tensor | None = None) -> Tensor:
    """One forward of a diffusers UNet: [R, 4, h, w]."""
    extra = None if given.text_embeds is None else {"text_embeds": given.text_embeds, "time_ids": given.time_ids}
    step = given.timestep if timestep is None else timestep
    return model(given.latents, step, given.context, added_cond_kwargs=extra).sample


def tokens(count: int = 4, seed: int = 2) -> Tokens:
    """Identity tokens [T, D] of one person."""
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = torch.randn(2, count, CONTEXT, generator=generator)
    return Tokens(cond, uncond)


def entity(count: int = 2, seed: int = 7) -> Entity:
    """Words of ``count`` tokens in a text of their own; the empty text is the same for everybody."""
    cond = torch.randn(TEXT_TOKENS, CONTEXT, generator=torch.Generator().manual_seed(seed))
    uncond = torch.randn(TEXT_TOKENS, CONTEXT, generator=torch.Generator().manual_seed(6))
    return Entity(cond, uncond, count)


def adapter(
    base: Base,
    seed: int = 3,
    *,
    text: bool = False,
    blending: bool = False,
    trained: bool = True,
    wanted: bool = False,
) -> Adapter:
    """A face adapter with random K and V.

    Args:
        text, blending: with TCA, with FFB.
        wanted: with MIP-Adapter's layers.
        trained: TCA and FFB hold random numbers; False leaves them as they are initialised.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sites: list[SiteAdapter] = []
        for index in range(SITES[base]):
            width = width_of(base, index)
            tca = TextConsistency(CONTEXT, width, rank=3) if text else None
            ffb = FeatureBlending(width, rank=3) if blending else None
            mip = nn.Linear(width, 1, bias=False) if wanted else None
            sites.append(SiteAdapter(CONTEXT, width, tca, ffb, mip))
            if mip is not None:
                nn.init.normal_(mip.weight)
            for module in (tca, ffb) if trained else ():
                for parameter in module.parameters() if module else ():
                    nn.init.normal_(parameter, std=0.3)
        return Adapter(FaceProjection(FACE, 2 * FACE, 4, CONTEXT), sites).eval().requires_grad_(False)


def gated_adapter(seed: int = 4) -> Adapter:
    """A FaceChain-FACT adapter for SD1.5 whose gates are open."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sites: list[GatedSiteAdapter] = []
        for index in range(SITES["sd15"]):
            site = GatedSiteAdapter(CONTEXT, width_of("sd15", index), 2 * width_of("sd15", index))
            nn.init.constant_(site.alpha_attn, 0.7)
            nn.init.constant_(site.alpha_dense, -0.5)
            sites.append(site)
        return Adapter(FaceProjection(FACE, 2 * FACE, 4, CONTEXT), sites).eval().requires_grad_(False)


def text_query_adapter(base: Base, seed: int = 3) -> Adapter:
    """A W+ adapter, whose identity is looked up by the text attention."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sites = [TextQuerySiteAdapter(CONTEXT, width_of(base, index)) for index in range(SITES[base])]
        return Adapter(FaceProjection(FACE, 2 * FACE, 4, CONTEXT), sites).eval().requires_grad_(False)


def box(x0: float, y0: float, x1: float, y1: float, size: tuple[int, int] = (16, 16), scale: int = 8) -> Tensor:
    """A hard mask [1, H, W] in picture space; edges as fractions, rounded to whole latent cells."""
    height, width = size
    mask = torch.zeros(1, height, width)
    mask[:, round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = 1
    return mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


# Files. Shapes as in the public ones, at narrow widths; the head width of resamplers and perceivers is always 64.


def family_tensors(family: str, base: Base = "sd15", tokens: int = 4, seed: int = 5) -> Nested:
    """A whole checkpoint of the family, in the nesting of its public container.

    Families: ip-adapter, ip-adapter-plus, ip-adapter-full-face, faceid, faceid-plus, faceid-portrait, faceid-sequence,
    mip-adapter, mip-adapter-plus.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        projections: dict[str, Mapping[str, Sequence[int]]] = {
            "ip-adapter": _image_shapes(tokens),
            "ip-adapter-plus": _resampler_shapes(CLIP, 64, tokens),
            "ip-adapter-full-face": _full_shapes(),
            "faceid": _face_shapes(tokens),
            "faceid-plus": _face_shapes(tokens) | _perceiver_shapes("perceiver_resampler.", CLIP, CONTEXT, CONTEXT),
            "faceid-portrait": _face_shapes(16),
            "faceid-sequence": _resampler_shapes(512, 64, 16),
            "mip-adapter": _image_shapes(tokens),
            "mip-adapter-plus": _resampler_shapes(CLIP, 64, tokens),
        }
        layers = key_values(base)
        if family.startswith("mip-"):
            shapes = {f"{2 * i + 1}.text_to_weight.weight": (1, width_of(base, i)) for i in range(SITES[base])}
            layers = {**layers, **_filled(shapes)}
        if family in {"faceid", "faceid-plus"}:
            layers = {**lora_layers(base), **layers}
        return {"image_proj": _filled(projections[family]), "ip_adapter": layers}


def key_values(base: Base) -> dict[str, Tensor]:
    """``N.to_{k,v}_ip.weight`` of every site, half precision."""
    shapes = {
        f"{2 * index + 1}.to_{name}_ip.weight": (width_of(base, index), CONTEXT)
        for index in range(SITES[base])
        for name in "kv"
    }
    return _filled(shapes)


def lora_layers(base: Base, rank: int = 2) -> dict[str, Tensor]:
    """``N.to_{q,k,v,out}_lora.{down,up}.weight`` of every attn1 (even N) and attn2 (odd N)."""
    shapes: dict[str, Sequence[int]] = {}
    for number in range(2 * SITES[base]):
        width = width_of(base, number // 2)
        for name in ("q", "k", "v", "out"):
            inputs = CONTEXT if number % 2 and name in "kv" else width
            shapes[f"{number}.to_{name}_lora.down.weight"] = (rank, inputs)
            shapes[f"{number}.to_{name}_lora.up.weight"] = (width, rank)
    return _filled(shapes)


def fact_tensors(seed: int = 6) -> dict[str, Tensor]:
    """A FaceChain-FACT file, flat."""
    return _fact(_resampler_shapes(FACE, 64, 16), seed)


def first_fact_tensors(patches: int, tokens: int = 5, seed: int = 6) -> dict[str, Tensor]:
    """A file of FaceChain-FACT's first version, flat."""
    shapes: dict[str, Sequence[int]] = {
        "net.weight": (tokens, patches),
        "net.bias": (tokens,),
        "feature.0.weight": (CONTEXT, FACE),
        **{f"feature.1.{name}": (tokens,) for name in ("weight", "bias", "running_mean", "running_var")},
        "feature.1.num_batches_tracked": (),
    }
    tensors = _fact(shapes, seed)
    tensors["local_fac_prj.feature.1.running_var"].abs_().add_(0.5)
    return tensors


def transface_tensors(width: int = FACE, depth: int = 2, patch: int = 28, seed: int = 7) -> dict[str, Tensor]:
    """A TransFace file: the network and, behind it, what is only used for recognition and training."""
    patches = (112 // patch) ** 2
    shapes: dict[str, Sequence[int]] = {
        "pos_embed": (1, patches, width),
        "mask_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "feature.0.weight": (width, width * patches),
        "senet.0.weight": (patches, width * patches),
    }
    for block in range(depth):
        own: dict[str, Sequence[int]] = {
            **{f"norm{i}.{name}": (width,) for i in (1, 2) for name in ("weight", "bias")},
            "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
        shapes |= {f"blocks.{block}.{key}": shape for key, shape in own.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _filled(shapes)


def _fact(projection: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    shapes: dict[str, Sequence[int]] = {f"local_fac_prj.{key}": shape for key, shape in projection.items()}
    for site in site_names("sd15"):
        width = width_of("sd15", site.index)
        own: dict[str, Sequence[int]] = {
            "alpha_attn": (),
            "alpha_dense": (),
            "linear.weight": (width, CONTEXT),
            "linear.bias": (width,),
            **{f"attn.to_{name}.weight": (width, width) for name in "qkv"},
            "attn.to_out.0.weight": (width, width),
            "attn.to_out.0.bias": (width,),
            "ff.net.0.proj.weight": (8 * width, width),
            "ff.net.0.proj.bias": (8 * width,),
            "ff.net.2.weight": (width, 4 * width),
            "ff.net.2.bias": (width,),
            **{f"norm{i}.{name}": (width,) for i in (1, 2) for name in ("weight", "bias")},
        }
        shapes |= {f"{site.diffusers}.attn2.processor.{key}": shape for key, shape in own.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _filled(shapes)


def write(path: Path, tensors: Nested | Mapping[str, Tensor], container: Container) -> Path:
    """Saves nested or flat tensors as flat safetensors, as a zip of ``torch.save``, or as its legacy pickle."""
    if container == "safetensors":
        from safetensors.torch import save_file

        save_file(flat(tensors), str(path))
    else:
        plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tensors.items()}
        torch.save(plain, path, _use_new_zipfile_serialization=container == "zip")
    return path


def flat(tensors: Nested | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins one level of nesting with dots."""
    joined: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if isinstance(value, Tensor):
            joined[key] = value
        else:
            joined |= {f"{key}.{inner}": tensor for inner, tensor in value.items()}
    return joined


def _filled(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Random half-precision tensors; scaled so that a linear layer keeps the size of what goes through it."""
    return {
        key: (torch.randn(tuple(shape)) / math.sqrt(shape[-1] if len(shape) > 1 else 1)).half()
        for key, shape in shapes.items()
    }


def _image_shapes(tokens: int) -> dict[str, Sequence[int]]:
    return {
        "proj.weight": (tokens * CONTEXT, CLIP),
        "proj.bias": (tokens * CONTEXT,),
        "norm.weight": (CONTEXT,),
        "norm.bias": (CONTEXT,),
    }


def _full_shapes() -> dict[str, Sequence[int]]:
    return {
        "proj.0.weight": (CLIP, CLIP),
        "proj.0.bias": (CLIP,),
        "proj.2.weight": (CONTEXT, CLIP),
        "proj.2.bias": (CONTEXT,),
        "proj.3.weight": (CONTEXT,),
        "proj.3.bias": (CONTEXT,),
    }


def _face_shapes(tokens: int) -> dict[str, Sequence[int]]:
    return {
        "proj.0.weight": (2 * FACE, FACE),
        "proj.0.bias": (2 * FACE,),
        "proj.2.weight": (tokens * CONTEXT, 2 * FACE),
        "proj.2.bias": (tokens * CONTEXT,),
        "norm.weight": (CONTEXT,),
        "norm.bias": (CONTEXT,),
    }


def _resampler_shapes(features: int, width: int, queries: int) -> dict[str, Sequence[int]]:
    return {"latents": (1, queries, width)} | _perceiver_shapes("", features, width, CONTEXT)


def _perceiver_shapes(prefix: str, features: int, width: int, out: int, depth: int = 2) -> dict[str, Sequence[int]]:
    inner = 64
    shapes: dict[str, Sequence[int]] = {
        "proj_in.weight": (width, features),
        "proj_in.bias": (width,),
        "proj_out.weight": (out, width),
        "proj_out.bias": (out,),
        "norm_out.weight": (out,),
        "norm_out.bias": (out,),
    }
    for layer in range(depth):
        attention, feed_forward = f"layers.{layer}.0.", f"layers.{layer}.1."
        shapes |= {f"{attention}norm{i}.{name}": (width,) for i in (1, 2) for name in ("weight", "bias")}
        shapes |= {
            attention + "to_q.weight": (inner, width),
            attention + "to_kv.weight": (2 * inner, width),
            attention + "to_out.weight": (width, inner),
            feed_forward + "0.weight": (width,),
            feed_forward + "0.bias": (width,),
            feed_forward + "1.weight": (4 * width, width),
            feed_forward + "3.weight": (width, 4 * width),
        }
    return {prefix + key: shape for key, shape in shapes.items()}


def storymaker_tensors(seed: int = 7) -> Nested:
    """A StoryMaker file: three places for persons, 4 tokens of the face and 2 of the figure each."""
    figure = _resampler_shapes(CLIP, 64, 2)
    shapes: dict[str, Sequence[int]] = {
        **_face_shapes(4),
        **_perceiver_shapes("perceiver_resampler.", CLIP, CONTEXT, CONTEXT),
        **{f"resample.{key}": shape for key, shape in figure.items()},
        "pos_embed": (3, 6, CONTEXT),
        "bg_embed": (1, 6, CONTEXT),
        "proj_out.weight": (CONTEXT, CONTEXT),
        "proj_out.bias": (CONTEXT,),
        "norm_out.weight": (CONTEXT,),
        "norm_out.bias": (CONTEXT,),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"image_proj_model": _filled(shapes), "ip_adapter": {**lora_layers("sdxl"), **key_values("sdxl")}}


def masterweaver_tensors(seed: int = 8) -> Nested:
    """A MasterWeaver file of 4 tokens a photo."""
    shapes = {"latents": (1, 4, CONTEXT)} | _perceiver_shapes("", CLIP, CONTEXT, CONTEXT, depth=1)
    final = {key.replace("layers.0.0.", "final_attn."): shape for key, shape in shapes.items() if "layers.0.0." in key}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {key.replace("_ip.", "_img."): value for key, value in key_values("sd15").items()}
        return {"id_encoder": _filled(shapes | final), "adapter_modules": layers}


def w_plus_tensors(seed: int = 9) -> Nested:
    """A W+ adapter's file."""
    shapes: dict[str, Sequence[int]] = {f"proj_{i}.weight": (CONTEXT, 512 * n) for i, n in enumerate((4, 4, 4, 6))}
    queries = {f"{2 * i + 1}.to_q_wplus.weight": (width_of("sd15", i),) * 2 for i in range(SITES["sd15"])}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {key.replace("_ip.", "_wplus."): value for key, value in key_values("sd15").items()}
        norm = _filled({"norm.weight": (CONTEXT,), "norm.bias": (CONTEXT,)})
        return {"w_proj": _filled(shapes) | norm, "wplus_adapter": layers | _filled(queries)}
