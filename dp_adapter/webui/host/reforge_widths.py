"""reForge and Forge classic: checkpoints of SD1.5's layout in other widths, such as the demo's small base.

Both know checkpoints by exact widths, as ComfyUI does (``ldm_patched/modules/supported_models.py``), and build SD1.5's
VAE and text encoder whatever the checkpoint holds (reForge@3b56b268, classic@1f95d717 ``modules_forge/
forge_loader.py``). While a checkpoint with configurations beside it is loaded, and only then, their list has one more
kind at its end, and their VAE gets the widths that it takes as an argument.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

_NAME = "SD15OfOtherWidths"
_OURS = "dp_adapter_widths"  # attribute of the loader's function that is ours


def register() -> None:
    """Has the loader led to the configurations beside a checkpoint; nothing where the WebUI loads otherwise."""
    loader: Any = sys.modules.get("modules_forge.forge_loader")  # modules.sd_models imports it, before any script
    load = getattr(loader, "load_model_for_a1111", None)
    if load is None or hasattr(load, _OURS):
        return

    @functools.wraps(load)
    def load_model_for_a1111(timer: Any, checkpoint_info: Any = None, state_dict: Any = None) -> Any:
        from dp_adapter.hosts.pipelines.single_file import config_beside

        folder = None if checkpoint_info is None else config_beside(Path(checkpoint_info.filename))
        with contextlib.nullcontext() if folder is None else _lead_loader_to(loader, folder):
            return load(timer=timer, checkpoint_info=checkpoint_info, state_dict=state_dict)

    setattr(load_model_for_a1111, _OURS, True)
    loader.load_model_for_a1111 = load_model_for_a1111


@contextlib.contextmanager
def _lead_loader_to(loader: Any, folder: Path) -> Generator[None]:
    from dp_adapter.hosts.pipelines import ldm_config

    supported: Any = sys.modules["ldm_patched.modules.supported_models"]
    kind, vae = _make_kind(supported, folder), loader.VAE
    supported.models.append(kind)
    loader.VAE = functools.partial(vae, config={"params": ldm_config.vae(folder)})
    try:
        yield
    finally:
        loader.VAE = vae
        supported.models.remove(kind)


def _make_kind(supported: Any, folder: Path) -> type:
    sd15 = supported.SD15

    def matches(_cls: type, unet_config: Mapping[str, Any], _state_dict: object = None) -> bool:
        return is_so_wide(folder, unet_config, sd15)

    def clip_target(self: Any, **_state_dict: Any) -> Any:
        target = sd15.clip_target(self)
        config = folder / "text_encoder" / "config.json"
        encoder = functools.partial(supported.sd1_clip.SDClipModel, textmodel_json_config=str(config))
        target.params = {**target.params, "clip_model": encoder}
        return target

    members: dict[str, Any] = {
        "matches": classmethod(matches),
        "clip_target": clip_target,
        "unet_extra_config": heads(folder),
    }
    return type(_NAME, (sd15,), members)


def is_so_wide(folder: Path, unet_config: Mapping[str, Any], sd15: Any) -> bool:
    """Whether a host's description of a UNet is that of the folder: SD1.5's in all but the widths."""
    from dp_adapter.hosts.pipelines import ldm_config

    config = ldm_config.unet(folder)
    wanted = sd15.unet_config | {name: config[name] for name in ("model_channels", "context_dim")}
    return all(unet_config.get(name) == value for name, value in wanted.items())


def heads(folder: Path) -> dict[str, int]:
    """What a checkpoint does not tell: how its widths are parted into heads."""
    from dp_adapter.hosts.pipelines import ldm_config

    return {"num_heads": -1, "num_head_channels": ldm_config.unet(folder)["num_head_channels"]}
