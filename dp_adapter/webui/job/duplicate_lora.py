"""FaceID's LoRA in the prompt too: then the one in the model's file stays out, so that it does not act twice."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from dp_adapter.session import Prepared

_TAG = re.compile(r"<(?:lora|lyco):([^:>]+)")


def drop_duplicate(p: Any, prepared: Prepared) -> tuple[Prepared, str]:
    """The same without the LoRA in the model's file where a prompt of the job asks for it, and a note that says so.

    Args:
        p: the job, with its prompts made.
    """
    if not prepared.injection.lora:
        return prepared, ""
    prompts = [text for name in ("all_prompts", "all_hr_prompts") for text in getattr(p, name, None) or ()]
    for name in dict.fromkeys(tag.strip() for text in prompts for tag in _TAG.findall(text)):
        path = _find_file(name)
        changed = None if path is None else prepared.without_lora(path)
        if changed is not None:
            note = f"the LoRA '{name}' of the prompt is the one inside the model's file, which stays out for it."
            return changed, note
    return prepared, ""


def _find_file(name: str) -> Path | None:
    """Where the host has the LoRA of this name; None where that is not known."""
    networks: Any = sys.modules.get("networks")  # of the built-in extension, Lora or sd_forge_lora
    for table in ("available_networks", "available_network_aliases"):
        known = cast("Mapping[str, Any]", getattr(networks, table, {}))
        if name in known:
            return Path(known[name].filename)
    return None
