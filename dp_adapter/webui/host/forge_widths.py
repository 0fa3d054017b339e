"""Forge and Forge neo: checkpoints of SD1.5's layout in other widths, such as the demo's small base.

Both tell what a checkpoint is by exact widths (lllyasviel/huggingface_guess@84826248 ``model_list.py``, ``SD15``:
context_dim 768, model_channels 320) and build the VAE and the text encoder from
``backend/huggingface/<huggingface_repo>`` (Forge@dfdcbab6 ``backend/loader.py``, ``forge_loader``). No file beside a
checkpoint changes that. So one more kind of model goes to the end of their list, where it is asked only if none of
their own matches: a narrow SD1.5 whose configurations lie in the folder ``NAME`` beside ``NAME.safetensors``, to which
its ``huggingface_repo`` leads. reForge and Forge classic load otherwise: ``reforge_widths.py``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp_adapter.webui.host import reforge_widths

_NAME = "SD15OfOtherWidths"


def register() -> None:
    """Adds the kind, once in a run of the WebUI; nothing where the WebUI does not guess so."""
    reforge_widths.register()
    model_list: Any = sys.modules.get("huggingface_guess.model_list")  # its loader has imported it before any script
    if model_list is None or any(kind.__name__ == _NAME for kind in model_list.models):
        return
    kind = _make_kind(model_list.SD15)
    model_list.models.append(kind)
    # neo chooses the engine by the exact type, Forge by what it is an instance of
    for engine in getattr(sys.modules.get("backend.loader"), "possible_models", ()):
        if model_list.SD15 in engine.matched_guesses:
            engine.matched_guesses.append(kind)


def _make_kind(sd15: Any) -> type:
    """A subclass of the host's kind."""

    def matches(_cls: type, unet_config: Mapping[str, Any], _state_dict: object = None) -> bool:
        folder = _find_configs()
        return folder is not None and reforge_widths.is_so_wide(folder, unet_config, sd15)

    def init(self: Any, unet_config: Mapping[str, Any]) -> None:
        folder = _find_configs()
        assert folder is not None  # it has matched
        self.huggingface_repo = _relative_to_repositories(folder)
        self.unet_extra_config = reforge_widths.heads(folder)
        sd15.__init__(self, unet_config)

    return type(_NAME, (sd15,), {"matches": classmethod(matches), "__init__": init})


def _relative_to_repositories(folder: Path) -> str:
    """The folder's path from Forge's own ``huggingface`` folder, to which it joins the repository's name.

    neo looks for families' names in it ("Wan", "Anima"), which a user's home folder may contain.
    """
    loader = sys.modules.get("backend.loader")
    if loader is None or loader.__file__ is None:
        return str(folder)
    try:
        return os.path.relpath(folder, Path(loader.__file__).parent / "huggingface")
    except ValueError:  # another drive of Windows
        return str(folder)


def _find_configs() -> Path | None:
    """The folder with configurations of the checkpoint that Forge loads now."""
    from modules import sd_models

    from dp_adapter.hosts.pipelines.single_file import config_beside

    info = sd_models.model_data.forge_loading_parameters.get("checkpoint_info")
    return None if info is None else config_beside(Path(info.filename))
