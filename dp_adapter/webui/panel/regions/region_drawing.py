"""A picture of where each person will act, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp_adapter import naming
from dp_adapter.webui.host import shared_session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from dp_adapter.settings import Settings

LONG_SIDE = 768
_OPACITY = 0.55
_EMPTY = (72, 76, 84)
# Distinct under the common kinds of colour blindness (Okabe and Ito).
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


@dataclass(frozen=True)
class RegionDrawing:
    """Attributes: picture: the canvas with regions over it; lines: one a person."""

    picture: Image
    lines: tuple[str, ...]


def make_canvas(width: float, height: float, init: Image | None) -> Image:
    """What regions are drawn on: the init picture, else grey of the chosen size; at most ``LONG_SIDE`` px."""
    from PIL import Image

    if init is not None:
        picture = init.convert("RGB")
        picture.thumbnail((LONG_SIDE, LONG_SIDE))
        return picture
    scale = min(1.0, LONG_SIDE / max(width, height, 1))
    return Image.new("RGB", (max(64, round(width * scale)), max(64, round(height * scale))), _EMPTY)


def read_inpaint_mask(mask: Image) -> Image:
    """Where a WebUI inpaints: by alpha alone where there is some (``create_binary_mask`` in modules/processing.py)."""
    if mask.mode == "RGBA" and mask.getextrema()[-1] != (255, 255):
        return mask.getchannel("A").point([255 if level > 128 else 0 for level in range(256)])
    return mask.convert("L")


def draw_regions(settings: Settings, under: Image, init: bool, inpaint: Image | None) -> RegionDrawing:
    """Draws the regions of a request.

    Args:
        under: from ``canvas``; ``init`` says whether it is an init picture, in which faces are looked for.
        inpaint: white where the picture is painted anew.

    Raises:
        DPAdapterError: a mask is not here any more.
    """
    import numpy as np

    from dp_adapter.core.types import Grid
    from dp_adapter.modes import fill_in
    from dp_adapter.session import Scene
    from dp_adapter.session.regions.face_mask import fit_mask
    from dp_adapter.session.regions.forecast import forecast_regions

    session = shared_session.session()
    settings = fill_in(settings, session.modes.of(settings.mode))
    picture = np.asarray(under, np.uint8)
    mask = None
    if inpaint is not None:
        mask = (np.asarray(inpaint.convert("L").resize(under.size)) / 255).astype(np.float32)
    base = shared_session.base() or "sd15"
    scene = Scene(base, under.width, under.height, (picture,) if init else (), mask)
    shown = settings.references or settings.regions
    persons = sorted({item.identity for item in shown}) or [0]
    forecasts = forecast_regions(settings, scene, session.photos, session.encoders, persons)
    lines = tuple(f"{naming.capitalise(naming.person(one.number))}: {one.line}." for one in forecasts)
    size = Grid(under.height, under.width)
    masks = {one.number: None if one.mask is None else fit_mask(one.mask[0], size).numpy() for one in forecasts}
    return RegionDrawing(tint(under, masks), lines)


def tint(under: Image, masks: Mapping[int, NDArray[np.float32] | None]) -> Image:
    """Each person's mask [h, w] in 0..1 over a picture of that size, in the person's colour; None is everywhere."""
    import numpy as np
    from PIL import Image

    picture = np.asarray(under, np.float32)
    for number, mask in masks.items():
        colour = np.array(COLOURS[number % len(COLOURS)], np.float32)
        strength = 1.0 if mask is None else mask[:, :, None]
        picture = picture + (colour - picture) * (_OPACITY * strength)
    return Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))
