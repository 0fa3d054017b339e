"""Which WebUI this is, and what the WebUIs do under different names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

ENTRY = Path(__file__).parents[3] / "scripts" / "dp_adapter.py"
WebUI = Literal["a1111", "forge", "neo", "reforge", "classic"]


@cache
def webui() -> WebUI:
    """The WebUI that is running; a fork that is not known counts as the nearest one that is."""
    if importlib.util.find_spec("modules_forge") is None:
        return "a1111"
    version: str = importlib.import_module("modules_forge.forge_version").version
    if version in ("neo", "classic"):
        return version
    return "forge" if importlib.util.find_spec("backend") else "reforge"


def is_forge() -> bool:
    """Whether models are driven by Forge's patchers, under any of its names."""
    return webui() != "a1111"


def models_folder() -> Path:
    from modules import paths

    return Path(paths.models_path)


def loaded_model() -> Any | None:
    """The checkpoint in memory; None before the first one is loaded, which this never causes."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    # Forge starts with an empty stand-in.
    return None if model is None or type(model).__name__ == "FakeInitialModel" else model


def chosen_checkpoint(title: str | None = None) -> Path | None:
    """The file of a checkpoint by its title; by default of the one that the next job takes, loaded or not."""
    from modules import sd_models, shared

    chosen = title or getattr(shared.opts, "sd_model_checkpoint", None) or ""
    info = sd_models.get_closet_checkpoint_match(chosen)
    return None if info is None else Path(info.filename)


def unet_patcher(model: Any) -> Any:
    """Forge's patcher of the model's UNet as it is now."""
    return model.forge_objects.unet


def diffusion_model(model: Any) -> Any:
    """The UNet module of a loaded checkpoint."""
    return unet_patcher(model).model.diffusion_model if is_forge() else model.model.diffusion_model


def checkpoint_file(model: Any) -> Path | None:
    """The file of a loaded checkpoint; None where the WebUI does not say."""
    name = getattr(getattr(model, "sd_checkpoint_info", None), "filename", None)
    return Path(name) if name else None


def encoder_device() -> str:
    """Where the host wants encoders to run; the CPU where it was started for little memory."""
    if is_forge():
        backend = importlib.util.find_spec("backend")
        name = "backend.memory_management" if backend else "ldm_patched.modules.model_management"
        return str(importlib.import_module(name).text_encoder_device())
    from modules import devices, shared

    return "cpu" if getattr(shared.cmd_opts, "lowvram", False) else str(devices.get_device_for("controlnet"))


def bytes_per_number(model: Any) -> int:
    """Size of the numbers that the UNet computes with; of those it stores where the WebUI does not say."""
    if is_forge():
        forge = unet_patcher(model).model
        for name in ("computation_dtype", "manual_cast_dtype"):  # Forge and neo; reForge and classic
            if (dtype := getattr(forge, name, None)) is not None:
                return int(dtype.itemsize)
    stored = next(diffusion_model(model).parameters()).element_size()
    return max(2, int(stored))  # 8 bits are stored only


def alternative_unet() -> str:
    """Label of the replacement UNet (TensorRT and the like) that runs instead of the model's; empty for none."""
    if is_forge():
        return ""
    from modules import sd_unet

    current = sd_unet.current_unet
    return "" if current is None else str(getattr(getattr(current, "option", None), "label", type(current).__name__))


def refiner_leaves_model(p: Any) -> bool:
    """Whether Forge goes over to another model object for this job's refiner, which no extension is told.

    Neo may load the refiner's weights into the model that is there, and has no refiner in jobs with a hires pass.
    """
    if not is_forge():
        return False
    if webui() != "neo":
        return True
    from modules import shared

    return not getattr(shared.opts, "refiner_fast_sd", False) and not getattr(p, "enable_hr", False)


def merge_tokens_again(p: Any) -> None:
    """A1111 takes token merging out of the model when a job ends, also when that job ran inside another."""
    if not is_forge():
        from modules import sd_models

        sd_models.apply_token_merging(p.sd_model, p.get_token_merging_ratio())


def adetailer_runs(p: Any) -> bool:
    """Whether ADetailer (Bing-su/adetailer) makes the faces of this job anew."""
    if getattr(p, "_ad_disabled", False):
        return False
    for script in p.scripts.alwayson_scripts:
        if script.title() == "ADetailer":
            args = p.script_args[script.args_from : script.args_to]
            tabs = [cast("Mapping[str, Any]", arg) for arg in args if isinstance(arg, Mapping)]
            on = args[0] if args and isinstance(args[0], bool) else True
            return on and any(map(_detects, tabs))
    return False


def _detects(tab: Mapping[str, Any]) -> bool:
    return tab.get("ad_model", "None") != "None" and tab.get("ad_tab_enable", True) is not False


def on_event(event: str, callback: Callable[..., Any]) -> None:
    """Registers a callback as the host's ``on_<event>`` does.

    Where the host lets itself be told who registers, it need not search the loaded modules for that, which takes it
    some 60 ms for each callback.
    """
    from modules import script_callbacks

    kept = script_callbacks.callback_map.get(f"callbacks_{event}")
    if kept is not None and "filename" in inspect.signature(script_callbacks.add_callback).parameters:
        script_callbacks.add_callback(kept, callback, category=event, filename=str(ENTRY))
    else:
        getattr(script_callbacks, f"on_{event}")(callback)


def wants_defaults_only() -> bool:
    """Whether the host asks a script for its panel only to read the widgets' values.

    Its API does that twice for each tab, outside of any row or column of a page (``init_default_script_args`` in
    modules/api/api.py of all hosts); building a panel takes longer than all else that we do at start.
    """
    from gradio.context import Context

    return Context.block is not None and Context.block is Context.root_block


def makes_all_steps() -> bool:
    """Whether img2img makes as many steps as it is told, whatever the denoising strength (an option of all hosts)."""
    from modules import shared

    return bool(getattr(shared.opts, "img2img_fix_steps", False))
