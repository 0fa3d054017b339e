"""What gradio 3.41 (A1111, reForge, classic) and 4.40 (Forge, neo) do differently, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gradio as gr
from gradio.context import Context

from dp_adapter.webui.panel.regions.region_drawing import read_inpaint_mask

if TYPE_CHECKING:
    from PIL.Image import Image

GRADIO = int(gr.__version__.split(".")[0])
QUIET: dict[str, Any] = {"show_progress": "hidden"}
"""For handlers that answer at once: gradio would grey the outputs out for a moment."""

ALWAYS_LAST: dict[str, Any] = {"trigger_mode": "always_last"} if GRADIO >= 4 else {}
"""For handlers whose events must not be lost while an earlier one is answered, as gradio 4 loses clicks."""


def js(code: str) -> dict[str, Any]:
    """The argument that runs JavaScript before a handler."""
    return {"js" if GRADIO >= 4 else "_js": code}


def same_page(component: Any) -> bool:
    """Whether a component is in the page that is being built. The API builds panels of its own to read defaults."""
    page = Context.root_block
    return page is not None and page.blocks.get(component._id) is component


def uploads(files: object) -> list[tuple[Path, str]]:
    """Uploaded files as (path, the user's name for it)."""
    listed = cast("Sequence[Any]", files if isinstance(files, list | tuple) else [files])
    found: list[tuple[Path, str]] = []
    for file in listed:
        if file is not None:
            path = Path(file if isinstance(file, str) else file.name)
            found.append((path, Path(getattr(file, "orig_name", None) or path).name))
    return found


def init_and_mask(value: Any, foreground: Any) -> tuple[Image | None, Image | None]:
    """Picture and inpaint mask of an img2img tab's component: a picture, or a dict of both from gradio 3's brush.

    Args:
        foreground: Forge's canvas keeps what is painted apart; elsewhere None.
    """
    mask = None
    if isinstance(value, dict):
        parts = cast("dict[str, Any]", value)
        value, mask = parts.get("image"), _picture(parts.get("mask"))
        mask = None if mask is None else read_inpaint_mask(mask)
    elif foreground is not None:
        painted_over = _picture(foreground)
        mask = None if painted_over is None else painted_over.convert("RGBA").getchannel("A")
    picture = _picture(value)
    return picture, mask if mask is not None and mask.getbbox() else None


def _picture(value: Any) -> Image | None:
    if value is None or hasattr(value, "convert"):
        return value
    from PIL import Image

    return Image.fromarray(value)
