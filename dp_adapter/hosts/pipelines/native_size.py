"""How large the pictures are that a base model was trained on, as far as its files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from dp_adapter.hosts.attach.sites import Base
from dp_adapter.hosts.pipelines.single_file import config_beside, stated_size

OF_FAMILY: dict[Base, int] = {"sd15": 512, "sdxl": 1024}
_CELL = 8  # px of a latent


def of_file(checkpoint: Path, base: Base) -> int:
    """Side in px: what the configurations beside the file say, else its ModelSpec header, else its family's."""
    folder = config_beside(checkpoint)
    found = None if folder is None else _configured(folder / "unet" / "config.json")
    return found or stated_size(checkpoint) or OF_FAMILY[base]


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
