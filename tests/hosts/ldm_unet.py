"""The real ``UNetModel`` of ldm, narrow, with chosen numbers, called as AUTOMATIC1111 calls it.

ldm is Stability's package as PyPI has it (stable-diffusion-sdkit 2.1.5). It is older than SDXL, so SDXL's UNet is put
together from its parts; with DP_SGM_PATH, the folder above Stability's ``sgm`` package, it is sgm's own class instead.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.hosts.attach.sites import site_names
from tests import tiny
from tests.hosts import ldm_names

SGM = os.environ.get("DP_SGM_PATH")


def of(unet: Any, groups: int) -> nn.Module:
    """The same UNet with the same numbers as one of diffusers; ``groups`` of its group norms."""
    config = unet.config
    channels: Sequence[int] = config.block_out_channels
    settings: dict[str, Any] = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": channels[0],
        "num_res_blocks": 2,
        "channel_mult": [width // channels[0] for width in channels],
        "context_dim": config.cross_attention_dim,
    }
    if config.addition_embed_type is None:
        settings |= {"attention_resolutions": [4, 2, 1], "num_heads": config.attention_head_dim}
    else:
        settings |= {
            "attention_resolutions": [4, 2],
            "num_head_channels": channels[0] // config.attention_head_dim[0],
            "use_linear_in_transformer": True,
            "transformer_depth": config.transformer_layers_per_block,
            "num_classes": "sequential",
            "adm_in_channels": config.projection_class_embeddings_input_dim,
        }
    prefix = "model.diffusion_model."
    state = {key.removeprefix(prefix): value for key, value in ldm_names.unet(unet).items()}
    return build(settings, state, groups)


def build(settings: Mapping[str, Any], state: Mapping[str, Tensor], groups: int = 32) -> nn.Module:
    """A ``UNetModel`` from its constructor's arguments and its state dict, in float32."""
    settings = {key: value for key, value in settings.items() if key != "use_checkpoint"}  # the WebUI has it off
    if "adm_in_channels" not in settings:
        settings = {"image_size": 32, "use_spatial_transformer": True, "legacy": False} | settings
        model = _construct(_ldm(), settings, groups)
    else:
        model = _sgm_unet(settings, groups) if SGM else _sdxl(dict(settings), groups)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval().requires_grad_(False)


def call(model: Any, given: tiny.Inputs, timestep: float | None = None) -> Tensor:
    """One forward as the WebUI makes it: [R, 4, h, w]."""
    timesteps = torch.full((len(given.latents),), given.timestep if timestep is None else timestep)
    with resizing():
        if given.text_embeds is None or given.time_ids is None:
            return model(given.latents, timesteps, context=given.context)
        embed = importlib.import_module("ldm.modules.diffusionmodules.util").timestep_embedding
        width = (model.label_emb[0][0].in_features - given.text_embeds.shape[1]) // 6
        sizes = embed(given.time_ids.flatten(), width).reshape(len(given.latents), -1)
        y = torch.cat([given.text_embeds, sizes], 1)
        return model(given.latents, timesteps=timesteps, context=given.context, y=y)


@contextmanager
def resizing() -> Generator[None]:
    """The WebUI's concatenation: what comes from below takes the skip connection's size (sd_hijack_unet.py:25-33)."""

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def cat(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
            last = tensors[-1].shape[-2:]
            return torch.cat([t if t.shape[-2:] == last else nn.functional.interpolate(t, last) for t in tensors], dim)

    with ExitStack() as stack:
        for module in [_ldm(), *([_sgm()] if SGM else [])]:
            stack.enter_context(patch.object(module, "th", Torch()))
        yield


def _ldm() -> Any:
    pytest.importorskip("ldm", reason="install stable-diffusion-sdkit==2.1.5 without its dependencies (see Makefile)")
    return importlib.import_module("ldm.modules.diffusionmodules.openaimodel")


def _sgm() -> Any:
    """sgm's UNet without what its packages' ``__init__`` import (Lightning, OpenCLIP, ...)."""
    assert SGM
    for name in ("sgm", "sgm.modules", "sgm.modules.diffusionmodules"):
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [f"{SGM}/{name.replace('.', '/')}"]
            sys.modules[name] = package
    return importlib.import_module("sgm.modules.diffusionmodules.openaimodel")


def _construct(package: Any, settings: Mapping[str, Any], groups: int) -> nn.Module:
    """Both packages write 32 groups into their code, which is more than a narrow model has channels."""
    attention = importlib.import_module(f"{package.__name__.split('.')[0]}.modules.attention")
    norm = importlib.import_module(package.__name__.replace("openaimodel", "util")).GroupNorm32
    with (
        patch.object(package, "normalization", partial(norm, groups)),
        patch.object(attention, "Normalize", partial(nn.GroupNorm, groups, eps=1e-6)),
    ):
        return package.UNetModel(**settings)


def _sgm_unet(settings: Mapping[str, Any], groups: int) -> nn.Module:
    """sgm's own class. At the WebUI's commit (45c443b) it must be told to use transformers, later it is not asked."""
    package = _sgm()
    asked = "use_spatial_transformer" in signature(package.UNetModel.__init__).parameters
    return _construct(package, {"use_spatial_transformer": True, **settings} if asked else settings, groups)


def _sdxl(settings: dict[str, Any], groups: int) -> nn.Module:
    """SDXL from ldm's parts: its UNet, whose transformers are made as deep as SDXL's, and sgm's vector embedding."""
    adm, context_dim = settings.pop("adm_in_channels"), settings["context_dim"]
    del settings["num_classes"], settings["transformer_depth"]
    package = _ldm()
    own = package.SpatialTransformer

    class Deep(own):
        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            return super().forward(x, [context] * len(self.transformer_blocks))

    depths: dict[str, int] = {}
    for site in site_names("sdxl"):
        path = site.ldm.split(".transformer_blocks")[0]
        depths[path] = depths.get(path, 0) + 1
    pending = iter(sorted(depths, key=lambda path: ["input", "middle", "output"].index(path.split("_")[0])))

    def deep(*args: Any, **options: Any) -> nn.Module:
        depth = depths[next(pending)]
        return Deep(*args, **options | {"depth": depth, "context_dim": [context_dim] * depth})

    with patch.object(package, "SpatialTransformer", deep):
        settings |= {"image_size": 32, "use_spatial_transformer": True, "legacy": False, "num_classes": "continuous"}
        model: Any = _construct(package, settings, groups)
    assert not list(pending)
    width = 4 * settings["model_channels"]
    model.label_emb = nn.Sequential(nn.Sequential(nn.Linear(adm, width), nn.SiLU(), nn.Linear(width, width)))
    return model
