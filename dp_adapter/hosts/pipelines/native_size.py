"""How large the pictures are that a base model was trained on, as far as its files say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from dp_adapter.hosts.attach.sites import Base

OF_FAMILY: dict[Base, int] = {"sd15": 512, "sdxl": 1024}
_CELL = 8  # px of a latent


def of_file(checkpoint: Path, base: Base) -> int:
    """Side in px: what the configurations beside the file say, else its ModelSpec header, else its family's."""
    from dp_adapter.hosts.pipelines.single_file import config_beside

    folder = config_beside(checkpoint)
    found = None if folder is None else _configured(folder / "unet" / "config.json")
    return found or stated(checkpoint) or OF_FAMILY[base]


def stated(checkpoint: Path) -> int | None:
    """The resolution in a ``.safetensors`` file's header (ModelSpec: ``1024x1024``); None where there is none."""
    if checkpoint.suffix.lower() != ".safetensors" or not checkpoint.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(checkpoint), "pt") as file:
            text = (file.metadata() or {}).get("modelspec.resolution", "")
    except (SafetensorError, OSError):
        return None
    sides = [int(side) for side in re.findall(r"\d+", text)]
    return max(sides) if sides and 64 <= max(sides) <= 4096 else None


def of_pipeline(pipeline: Any) -> int:
    """Side in px of what a diffusers pipeline makes where nobody says a size."""
    given: int | list[int] | tuple[int, ...] | None = pipeline.unet.config.sample_size
    cells = max(cast("list[int]", given)) if isinstance(given, list | tuple) else given
    family = OF_FAMILY["sdxl" if hasattr(pipeline, "text_encoder_2") else "sd15"]
    return cells * int(pipeline.vae_scale_factor) if cells else family


def _configured(file: Path) -> int | None:
    try:
        cells = json.loads(file.read_text(encoding="utf-8")).get("sample_size")
    except (OSError, ValueError):
        return None
    return _CELL * cells if isinstance(cells, int) and cells > 0 else None
