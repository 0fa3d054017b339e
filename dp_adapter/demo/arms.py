"""The demo's experiment: one photo, one seed, three arms, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_adapter.core.regions import GATE_POWERS, gains
from dp_adapter.core.types import Grid
from dp_adapter.errors import FaceError
from dp_adapter.generation import sample, scene_of
from dp_adapter.hosts.pipelines import Job, Pipeline
from dp_adapter.hosts.sites import site_names
from dp_adapter.identity.pictures import Picture
from dp_adapter.session import Explanation, Session
from dp_adapter.session.judge import likeness, reference_vector
from dp_adapter.settings import Region, Settings

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of making the picture.

    Attributes:
        heat: mean absolute difference to the base arm over the colours, [H, W] in 0..255.
        likeness: cosine to the reference by SFace; 0 without a face.
        outside, inside: mean square difference to the base arm outside and inside the region, colours in 0..1.
    """

    name: str
    picture: Picture
    heat: Values
    likeness: float
    outside: float
    inside: float
    explanation: Explanation


@dataclass(frozen=True, eq=False)
class Level:
    """The gate at one depth of the UNet: ``gate`` [h, w] = M^p."""

    name: str
    power: float
    gate: Values


@dataclass(frozen=True, eq=False)
class Experiment:
    """One job in three arms; ``region`` [H, W] and ``levels`` are those of the DP-Adapter arm."""

    title: str
    job: Job
    region: Values
    levels: tuple[Level, ...]
    arms: tuple[Arm, ...]


def run(
    title: str,
    session: Session,
    pipeline: Pipeline,
    settings: Settings,
    job: Job,
    progress: Callable[[str, int, int], None],
) -> Experiment:
    """Makes {base, plain add, DP-Adapter} with the same seed; plain add is the same adapter in the whole picture."""
    everywhere = settings.replace(regions=(Region(kind="full"),))
    requests = {
        "base model": settings.replace(enabled=False),
        "plain add": everywhere.with_field("span.start", 0.0),
        "DP-Adapter": settings,
    }
    scene = scene_of(pipeline, job)
    prepared = {name: session.prepare(request, scene) for name, request in requests.items()}
    mask = prepared["DP-Adapter"].injection.identities[0].region
    if mask is None:
        raise FaceError("The face of the photo is not found in the picture to start from", "Give a larger portrait.")
    pictures = {
        name: sample(pipeline, ready, job, lambda done, total, name=name: progress(name, done, total))[0]
        for name, ready in prepared.items()
    }
    region = mask[0].numpy().astype(np.float32)
    target = reference_vector(session, settings)
    assert target is not None, "the adapter's own detector is the judge's"
    base = pictures["base model"]
    arms = [
        _arm(name, picture, base, region, likeness(session, picture, target), prepared[name].explanation)
        for name, picture in pictures.items()
    ]
    return Experiment(title, job, region, tuple(_levels(mask, Grid(job.height // 8, job.width // 8))), tuple(arms))


def _arm(name: str, picture: Picture, base: Picture, region: Values, alike: float, explanation: Explanation) -> Arm:
    difference = (picture.astype(np.float32) - base) / 255
    square = (difference**2).mean(-1)
    return Arm(
        name,
        picture,
        np.abs(difference).mean(-1) * 255,
        alike,
        float((square * (1 - region)).sum() / max((1 - region).sum(), 1.0)),
        float((square * region).sum() / max(region.sum(), 1.0)),
        explanation,
    )


def _levels(mask: Any, latent: Grid) -> list[Level]:
    """The gate at every grid that the sites really have, from the top down and up again."""
    levels: dict[str, Level] = {}
    order = ("down", "middle", "up")  # as the UNet runs; a checkpoint's order has the middle last
    for site in sorted(site_names("sd15"), key=lambda site: order.index(site.level)):
        grid = latent.halved(site.halvings)
        name = f"{site.level}, {grid.height}x{grid.width}"
        gate = gains([mask], latent, site.halvings, site.level, GATE_POWERS)[0]
        if name not in levels and gate is not None:
            values = gate.reshape(grid.height, grid.width).numpy()
            levels[name] = Level(name, GATE_POWERS[site.level], values)
    return list(levels.values())
