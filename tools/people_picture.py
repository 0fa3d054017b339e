"""Draws docs/images/people.jpg: three people's photos, and where each of them acts in a picture that shows them.

python -m tools.people_picture PORTRAITS OUT.jpg, with PORTRAITS/NAME_a.jpg and NAME_b.jpg of three people or more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dp_adapter.cli.models import models_root
from dp_adapter.core.regions.region_masks import gains
from dp_adapter.core.types import Grid
from dp_adapter.identity.pictures.draw_faces import COLOURS, label
from dp_adapter.identity.pictures.draw_masks import draw_pyramid, overlay_masks
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.session import Scene, Session
from dp_adapter.session.regions.requested_regions import RequestedRegions
from dp_adapter.settings import Settings

SIDE = 256
ORDER = (1, 2, 0)  # of the persons in the picture, from left to right


def draw(folder: Path, out: Path) -> None:
    names = sorted({path.stem.removesuffix("_a") for path in folder.glob("*_a.jpg")})[:3]
    photos = [folder / f"{name}_a.jpg" for name in names]
    picture = np.concatenate([_square(folder / f"{names[n]}_b.jpg") for n in ORDER], 1)
    references = [{"image": str(path), "identity": n} for n, path in enumerate(photos)]
    settings = Settings.from_dict({"references": references, "tracking": {"grow": 0.1}})
    session = Session([models_root(None)], paths_allowed=True)
    scene = Scene("sd15", picture.shape[1], picture.shape[0], (picture,))
    requested = RequestedRegions(settings, scene, session.photos, session.encoders)
    found = [requested.find_regions(n) for n in range(3)]
    masks = [area.mask[0].numpy() for area in found if area.mask is not None]
    latent = Grid(picture.shape[0] // 8, picture.shape[1] // 8)
    gates = [
        gate[0].reshape(latent.height, latent.width).numpy()
        for gate in gains([area.mask for area in found], latent, 0, "down", {"down": 1.0, "middle": 1.0, "up": 1.0})
        if gate is not None
    ]
    top = np.concatenate([_frame(_square(path), n) for n, path in enumerate(photos)], 1)
    drawn = np.ascontiguousarray(overlay_masks(picture, masks))
    for n, area in enumerate(found):
        label(drawn, [area.source.split(",")[0]], (8 + ORDER.index(n) * SIDE, 34), 0.5)
    bottom = draw_pyramid([("the finest grid", [(f"gate of person {n}", gate) for n, gate in enumerate(gates)])])
    height = bottom.shape[0] * top.shape[1] // bottom.shape[1]
    scaled = np.asarray(Image.fromarray(bottom).resize((top.shape[1], height), Image.Resampling.NEAREST), np.uint8)
    Image.fromarray(np.concatenate([top, drawn, scaled])).save(out, quality=85)


def _square(path: Path) -> Picture:
    picture = load_picture(path)
    side = min(picture.shape[:2])
    return np.asarray(Image.fromarray(picture[:side, :side]).resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.uint8)


def _frame(picture: Picture, number: int) -> Picture:
    framed = np.full_like(picture, COLOURS[number])
    framed[6:-6, 6:-6] = picture[6:-6, 6:-6]
    label(framed, [f"person {number}"], (10, 40), 0.6)
    return framed


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
