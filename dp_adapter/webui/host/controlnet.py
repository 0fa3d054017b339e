"""ControlNet as each WebUI has it: Forge's own, or A1111's extension Mikubill/sd-webui-controlnet (@56cec5b)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp_adapter.errors import HostError
from dp_adapter.webui.host.compat import is_forge, webui

_KINDS = ("ControlNet", "InstantID")  # the extension calls it the latter by the file's name
_ENTRY = "controlnet_main_entry"


def controlnets() -> list[Any]:
    """A1111's instances of the extension's script, one for each tab; empty without the extension."""
    from modules import scripts

    runners = (scripts.scripts_txt2img, scripts.scripts_img2img)
    return [script for runner in runners for script in runner.alwayson_scripts if hasattr(script, _ENTRY)]


def has_controlnet() -> bool:
    """Whether IdentityNet has a ControlNet here. reForge's asks no modifier and knows no mask (its ldm_patched)."""
    return webui() != "reforge" if is_forge() else bool(controlnets())


def load_control(path: Path) -> Any:
    """A ControlNet as the host loads it, in A1111 on the CPU.

    Raises:
        HostError: the file is none that the host knows.
    """
    loaded = _load_by_forge(path) if is_forge() else _load_by_extension(path)
    if loaded is None:
        raise _no_control(path)
    return loaded


def _load_by_forge(path: Path) -> Any | None:
    loaded = importlib.import_module("modules_forge.shared").try_load_supported_control_model(str(path))
    return getattr(loaded, "model_patcher", None)


def _load_by_extension(path: Path) -> Any | None:
    names = extension_names()
    try:
        model, kind = names["build_model_by_guess"](names["load_state_dict"](str(path)), None, str(path))
    except Exception as error:  # the extension raises plain ones
        raise _no_control(path) from error
    return model if kind.name in _KINDS else None


def _no_control(path: Path) -> HostError:
    return HostError(f"{path.name} is no ControlNet that this WebUI can load", "Choose InstantID's IdentityNet.")


def extension_names() -> Mapping[str, Any]:
    """What the extension's script works with: names of its module, which no import reaches."""
    names: dict[str, Any] = getattr(controlnets()[0], _ENTRY).__func__.__globals__
    return names


def with_control(unet: Any, control: Any, hint: Any, weight: float, end: float, mask: Any) -> Any:
    """A clone of Forge's UNet patcher that asks one more ControlNet.

    Args:
        hint: [1, 3, h, w] in 0..1; mask: [1, 1, h, w] or None; end: progress at which it stops.
    """
    where = "backend.patcher.controlnet" if webui() in ("forge", "neo") else "modules_forge.controlnet"
    apply = importlib.import_module(where).apply_controlnet_advanced
    return apply(unet, control, hint, weight, 0.0, end, advanced_mask_weighting=mask)
