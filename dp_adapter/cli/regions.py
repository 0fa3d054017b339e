"""``dp-adapter regions``: where would each person act in this picture, and what of it reaches the UNet?"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter import naming
from dp_adapter.cli.models import models_root

if TYPE_CHECKING:
    from dp_adapter.core.types import Level
    from dp_adapter.hosts.attach.sites import Base
    from dp_adapter.identity.faces.preview_faces import PreviewFinder
    from dp_adapter.identity.pictures.picture_files import Picture
    from dp_adapter.session import Session
    from dp_adapter.session.regions.requested_regions import PersonRegion
    from dp_adapter.settings import Settings

_NATIVE = {"sd15": 512, "sdxl": 1024}
_LATENT = 8  # px to a cell


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``regions`` to the command line."""
    parser = subparsers.add_parser("regions", help="where would each person act?", description=__doc__)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="taken as the picture to be made")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the pictures")
    parser.add_argument("--base", choices=tuple(_NATIVE), default="sd15", help="whose size and UNet are meant")
    parser.add_argument(
        "--noise", type=_parse_progress, metavar="PROGRESS", help="show it as it forms: 0 is noise, 1 done"
    )
    parser.add_argument("--settings", type=Path, metavar="FILE", help="settings as JSON")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="any field, such as parts.hair=1"
    )
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="folder with encoders")
    parser.set_defaults(run=run)


def _parse_progress(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a progress from 0 to 1")
    return value


def run(args: argparse.Namespace) -> int:
    """0, or 1 when a picture shows no face.

    Raises:
        DPAdapterError: a picture or a setting cannot be used.
    """
    from dp_adapter.cli.settings import request_from
    from dp_adapter.modes import fill_in
    from dp_adapter.session import Session

    request = request_from(args.settings, {}, args.set)
    session = Session([models_root(args.models_dir)], paths_allowed=True)
    settings = fill_in(request, session.modes.of(request.mode))
    args.out.mkdir(parents=True, exist_ok=True)
    return max(_show(path, settings, session, args) for path in args.photos)


@dataclass(frozen=True)
class _Person:
    """Attributes: mask, parts: [H, W]; gates: caption and grid at each level of the UNet."""

    number: int
    region: PersonRegion
    mask: Any
    parts: dict[str, Any]
    gates: list[tuple[str, Any]]


def _show(path: Path, settings: Settings, session: Session, args: argparse.Namespace) -> int:
    from dp_adapter.identity.pictures.picture_files import load_picture

    picture = _fit_to_model(load_picture(path), _NATIVE[args.base])
    name = path.stem
    finder = None
    if args.noise is not None:
        from dp_adapter.identity.faces.preview_faces import PreviewFinder
        from dp_adapter.identity.faces.simulated_previews import simulate_preview

        picture = simulate_preview(picture, args.noise)
        name += f"_{args.noise:.2f}"
        finder = PreviewFinder(session.encoders.yunet, session.encoders.parser)
    faces = session.photos.faces(picture, finder or session.encoders.yunet)
    people = _find_people(picture, settings, session, len(faces), args.base, finder)
    seen = "" if args.noise is None else f" at progress {args.noise:g}"
    print(f"{path.name}: {picture.shape[1]}x{picture.shape[0]}{seen}, {len(faces)} face(s), numbered from the left")
    for person in people:
        print(f"  {naming.person(person.number)}: {person.region.source}; {person.region.coverage:.1%} of the picture")
        print("     gates: " + ", ".join(f"{caption} {grid.mean():.1%}" for caption, grid in person.gates))
    for target in _write_pictures(args.out / name, picture, faces, people, settings):
        print(f"  -> {target}")
    facts = _facts(path, picture, faces, people, args)
    (args.out / f"{name}_regions.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"  -> {args.out / f'{name}_regions.json'}")
    return 0 if faces else 1


def _fit_to_model(picture: Picture, native: int) -> Picture:
    """At the size that it would be made in: the model's area at most, sides in whole cells of the latent."""
    import numpy as np
    from PIL import Image

    scale = min(1.0, native / (picture.shape[0] * picture.shape[1]) ** 0.5)
    height, width = (max(1, round(side * scale / _LATENT)) * _LATENT for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS), np.uint8)


def _find_people(
    picture: Picture, settings: Settings, session: Session, faces: int, base: Base, finder: PreviewFinder | None
) -> list[_Person]:
    """The request's persons; where it names none, everybody whose face is there."""
    import numpy as np

    from dp_adapter.core.regions.region_masks import gains
    from dp_adapter.core.types import Grid
    from dp_adapter.session import Scene
    from dp_adapter.session.regions.face_mask import fit_mask
    from dp_adapter.session.regions.requested_regions import RequestedRegions

    height, width = picture.shape[:2]
    scene = Scene(base, width, height, (picture,))
    requested = RequestedRegions(settings, scene, session.photos, session.encoders, finder=finder)
    named = sorted({item.identity for item in settings.references or settings.regions})
    numbers = named or list(range(max(1, faces)))
    found = [requested.find_regions(number) for number in numbers]
    size, latent = Grid(height, width), Grid(height // _LATENT, width // _LATENT)
    powers: dict[Level, float] = {"down": settings.gate.down, "middle": settings.gate.middle, "up": settings.gate.up}
    gates: list[list[tuple[str, Any]]] = [[] for _ in numbers]
    for level, halvings in _levels(base):
        grid = latent.halved(halvings)
        for row, gate in zip(gates, gains([a.mask for a in found], latent, halvings, level, powers), strict=True):
            cells = np.ones((grid.height, grid.width)) if gate is None else gate[0].numpy()
            row.append((f"{level} {grid.width}x{grid.height}", cells.reshape(grid.height, grid.width)))
    return [
        _Person(
            number,
            area,
            np.ones((height, width), np.float32) if area.mask is None else fit_mask(area.mask[0], size).numpy(),
            {part: fit_mask(mask, size).numpy() for part, mask in requested.face_parts(number).items()},
            row,
        )
        for number, area, row in zip(numbers, found, gates, strict=True)
    ]


def _levels(base: Base) -> list[tuple[Level, int]]:
    """Level and number of halvings where the UNet has attention to the text, in the order of the signal."""
    from dp_adapter.hosts.attach.sites import site_names

    depths: dict[Level, set[int]] = {"down": set(), "middle": set(), "up": set()}
    for site in site_names(base):
        depths[site.level].add(site.halvings)
    return [(level, depth) for level, found in depths.items() for depth in sorted(found, reverse=level == "up")]


def _write_pictures(stem: Path, picture: Picture, faces: Any, people: list[_Person], settings: Settings) -> list[Path]:
    from PIL import Image

    from dp_adapter.identity.pictures.draw_faces import annotate
    from dp_adapter.identity.pictures.draw_masks import draw_parts, draw_pyramid, overlay_masks

    drawn = {
        "regions": annotate(overlay_masks(picture, [person.mask for person in people]), faces),
        "parts": draw_parts(picture, [person.parts for person in people], settings.parts.weights()),
        "pyramid": draw_pyramid([(naming.person(person.number), person.gates) for person in people]),
    }
    paths = {kind: stem.with_name(f"{stem.name}_{kind}.png") for kind in drawn}
    for kind, path in paths.items():
        Image.fromarray(drawn[kind]).save(path)
    return list(paths.values())


def _facts(path: Path, picture: Picture, faces: Any, people: list[_Person], args: argparse.Namespace) -> dict[str, Any]:
    return {
        "photo": path.name,
        "size": [picture.shape[1], picture.shape[0]],
        "progress": args.noise,
        "faces": [{"box": [round(x, 1) for x in face.box.tolist()], "score": round(face.score, 3)} for face in faces],
        "regions": [
            {
                "person": person.number,
                "source": person.region.source,
                "known": person.region.known,
                "weight": person.region.weight,
                "coverage": round(person.region.coverage, 4),
                "parts": {name: round(float(mask.mean()), 4) for name, mask in person.parts.items()},
                "gates": {caption: round(float(grid.mean()), 4) for caption, grid in person.gates},
            }
            for person in people
        ],
    }
