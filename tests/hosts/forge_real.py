"""The real UNets of Forge, reForge and Forge classic, from a checkout outside CI.

``DP_FORGE_PATH`` names one of Forge or neo's folder webui (``backend``), ``DP_LDM_PATCHED_PATH`` one of reForge or
Forge classic.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from dp_adapter.hosts.attach.sites import Base
from tests import tiny
from tests.hosts import ldm_names

_DEPTHS = {
    "sd15": {"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3},
    "sdxl": {"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]},
}


Build = Callable[[Mapping[str, Any], Mapping[str, Any]], nn.Module]


def builders() -> dict[str, Build]:
    """Per real host that this machine has, a function from constructor arguments and numbers to its UNet."""
    found: dict[str, Build] = {}
    if path := os.environ.get("DP_FORGE_PATH"):
        found["forge main"] = partial(backend_unet, path)
    if other := os.environ.get("DP_LDM_PATCHED_PATH"):
        found["forge ldm_patched"] = partial(ldm_patched_unet, other)
    return found


def config(base: Base) -> dict[str, Any]:
    """Constructor arguments for the widths of ``tiny.unet``."""
    channels = tiny.CHANNELS[base]
    shared: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": channels[0],
        "num_res_blocks": [2] * len(channels),
        "channel_mult": [width // channels[0] for width in channels],
        "use_spatial_transformer": True,
        "context_dim": tiny.CONTEXT,
        **_DEPTHS[base],
    }
    if base == "sd15":
        return {**shared, "num_heads": 4, "transformer_depth_middle": 1}
    vector = {"num_classes": "sequential", "adm_in_channels": tiny.CONTEXT + 6 * 8}
    own = {"num_head_channels": 8, "transformer_depth_middle": 10, "use_linear_in_transformer": True}
    return {**shared, **vector, **own}


def state(base: Base) -> dict[str, Any]:
    prefix = "model.diffusion_model."
    return {key.removeprefix(prefix): value for key, value in ldm_names.unet(tiny.unet(base)).items()}


def backend(path: str) -> None:
    """Makes ``backend`` of a Forge checkout importable, for the CPU."""
    if path not in sys.path:
        sys.path[:0] = [path, path + "/packages_3rdparty", path + "/modules_forge/packages"]  # the last is neo's
        argv, sys.argv = sys.argv, [sys.argv[0], "--always-cpu", "--cpu"]  # each knows one of them
        importlib.import_module("backend.args")
        sys.argv = argv


def ldm_patched(path: str) -> None:
    """Makes ``ldm_patched`` of a reForge or Forge classic checkout importable, for the CPU."""
    if path not in sys.path:
        sys.path.insert(0, path)
        importlib.import_module("ldm_patched.modules.args_parser").args.always_cpu = True


def backend_unet(path: str, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> nn.Module:
    backend(path)
    kind = importlib.import_module("backend.nn.unet").IntegratedUNet2DConditionModel
    return _filled(kind, arguments, numbers)


def ldm_patched_unet(path: str, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> nn.Module:
    ldm_patched(path)
    kind = importlib.import_module("ldm_patched.ldm.modules.diffusionmodules.openaimodel").UNetModel
    operations = importlib.import_module("ldm_patched.modules.ops").disable_weight_init
    return _filled(kind, {**arguments, "image_size": 32, "operations": operations}, numbers)


def _filled(kind: Any, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> nn.Module:
    with _eight_groups(arguments["model_channels"] < 32):
        unet = kind(**arguments)
    unet.load_state_dict(numbers)
    return unet


@contextmanager
def _eight_groups(narrow: bool) -> Generator[None]:
    """The hosts write 32 groups into their code, more than the tiny UNets have channels."""
    original: Any = nn.GroupNorm.__init__

    def init(self: Any, num_groups: int, *args: Any, **kwargs: Any) -> None:
        original(self, 8 if narrow else num_groups, *args, **kwargs)

    nn.GroupNorm.__init__ = init
    try:
        yield
    finally:
        nn.GroupNorm.__init__ = original
