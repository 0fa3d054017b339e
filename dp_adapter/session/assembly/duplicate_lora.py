"""A LoRA that came inside a checkpoint and is in the base model by another way already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dp_adapter.session.assembly.injection import Prepared
from dp_adapter.weights.faceid_lora import is_same


def without_lora_of(prepared: Prepared, path: Path) -> Prepared | None:
    """The same without the checkpoint's own LoRA, if a file that the host applies holds it; else None."""
    if not is_same(path, [entry for entry, _ in prepared.injection.lora]):
        return None
    injection = replace(prepared.injection, lora=())
    return replace(prepared, injection=injection, explanation=replace(prepared.explanation, lora=0.0))
