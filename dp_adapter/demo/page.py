"""The demo's HTML page: one file with its pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dp_adapter import __version__
from dp_adapter.demo.arms import Experiment
from dp_adapter.identity.pictures import Picture

Values = NDArray[np.float32]

# Viridis at five points: dark is no difference, yellow the largest one.
_COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)


def write(path: Path, photo: Picture, faces: Picture, facts: Sequence[str], experiments: Sequence[Experiment]) -> None:
    """Renders the page.

    Args:
        photo: the reference; faces: the same with the found face and its parts drawn in.
        facts: sentences about the reference.
    """
    import jinja2

    folder = Path(__file__).parent
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True)
    html = environment.get_template("page.html").render(
        version=__version__,
        photo=photo,
        faces=faces,
        facts=facts,
        experiments=experiments,
        overlay=overlay,
        picture_url=picture_url,
        heat_url=heat_url,
        grid_url=grid_url,
        largest={e.title: max(float(arm.heat.max()) for arm in e.arms) for e in experiments},
    )
    path.write_text(html, encoding="utf-8")


def picture_url(picture: Picture) -> str:
    """A PNG as a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_url(values: Values, largest: float) -> str:
    """[H, W] from 0 to ``largest`` in colours."""
    place = np.clip(values / max(largest, 1e-6), 0, 1) * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(int), len(_COLOURS) - 2)
    share = (place - low)[..., None]
    return picture_url(((1 - share) * _COLOURS[low] + share * _COLOURS[low + 1]).astype(np.uint8))


def grid_url(gate: Values) -> str:
    """A gate [h, w] in greys, one pixel a cell; the page enlarges it without smoothing."""
    return picture_url(np.repeat((gate * 255).round().astype(np.uint8)[..., None], 3, -1))


def overlay(picture: Picture, region: Values) -> Picture:
    """The picture with everything outside the region dimmed and greyed."""
    grey = picture.astype(np.float32).mean(-1, keepdims=True) * 0.35
    share = region[..., None]
    return (share * picture + (1 - share) * grey).astype(np.uint8)
