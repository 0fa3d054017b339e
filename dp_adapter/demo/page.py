"""Renders the demo's HTML page: one file with its pictures inside."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np

from dp_adapter import __version__
from dp_adapter.core.regions.region_masks import GATE_POWERS, gains
from dp_adapter.core.types import Grid
from dp_adapter.demo.drawing import Values, draw_heat, draw_region
from dp_adapter.demo.sections import Comparison, Story
from dp_adapter.demo.sheets import describe_likeness
from dp_adapter.demo.shots import GUIDANCE, SIDE, WEIGHT
from dp_adapter.hosts.attach.sites import site_names
from dp_adapter.identity.pictures.picture_files import Picture


def write(path: Path, story: Story, base: str, seconds: float) -> None:
    """Renders the page.

    Args:
        base: the base model's name.
        seconds: what it took so far.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("page.html").render(
        version=__version__,
        story=story,
        base=base,
        seconds=seconds,
        side=SIDE,
        guidance=GUIDANCE,
        weight=WEIGHT,
        gates=gates_by_grid(story.comparisons[0]) if story.comparisons else {},
        describe_likeness=describe_likeness,
        draw_region=draw_region,
        draw_heat=draw_heat,
        picture_url=picture_url,
        gate_url=gate_url,
        largest=max((float(v.max()) for one in story.comparisons for v in one.heat.values()), default=0.0),
    )
    path.write_text(html, encoding="utf-8")


def picture_url(picture: Picture) -> str:
    """A PNG as a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def gate_url(gate: Values) -> str:
    """A gate [h, w] in greys as a data URL, one pixel a cell; the page enlarges it without smoothing."""
    return picture_url(np.repeat((gate * 255).round().astype(np.uint8)[..., None], 3, -1))


def gates_by_grid(one: Comparison) -> dict[str, Values]:
    """The gate M^p [h, w] at every grid that the sites have, from the top down and up again; none without a region."""
    import torch

    if one.region is None:
        return {}
    mask, latent = torch.as_tensor(one.region)[None], Grid(SIDE // 8, SIDE // 8)
    found: dict[str, Values] = {}
    order = ("down", "middle", "up")  # as the UNet runs; a checkpoint's order has the middle last
    for site in sorted(site_names("sd15"), key=lambda site: order.index(site.level)):
        grid = latent.halved(site.halvings)
        gate = gains([mask], latent, site.halvings, site.level, GATE_POWERS)[0]
        if gate is not None:
            name = f"{site.level}, {grid.height}×{grid.width}, p = {GATE_POWERS[site.level]:g}"
            found.setdefault(name, gate.reshape(grid.height, grid.width).numpy())
    return found
