"""The page about a run: counts, who is in it, how the faces are distributed, examples of what was kept and dropped."""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dp_adapter.errors import MissingDependencyError, PictureError
from dp_adapter.identity.pictures.picture_files import Picture, PictureLimits, load_picture
from dp_adapter.training.prepare.list_pictures import Listing
from dp_adapter.training.prepare.picture_result import REASONS
from dp_adapter.training.prepare.selection import Chosen, Dropped
from dp_adapter.training.prepare.work_log import DoneWork

KEPT, EACH = 24, 6
"""Examples of kept pictures, and of each reason to drop one."""
PEOPLE = 200
_BINS = 24
_SIDE = 128  # px of an example
_LIMITS = PictureLimits(long_side=1024, min_side=1)


@dataclass(frozen=True)
class Histogram:
    """Bars of equal width from ``low`` to ``high``; values beyond them are counted in the outer bars."""

    title: str
    low: float
    high: float
    bars: tuple[int, ...]
    median: float


@dataclass(frozen=True)
class ExamplePicture:
    """A small picture as a data URL (empty where it cannot be read) and what is said below it."""

    url: str
    title: str
    words: str


def page(manifest: Mapping[str, Any], listing: Listing, chosen: Chosen, work: DoneWork) -> str:
    """The page, one file with its pictures inside.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingDependencyError("jinja2", "The statistics page", "train") from None
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    sizes = Counter(sample.person for sample in chosen.samples)
    return environment.get_template("statistics.html").render(
        manifest=manifest,
        counts=manifest["counts"],
        likeness=manifest["likeness"],
        reasons=REASONS,
        people=sizes.most_common(PEOPLE),
        photos=sorted(Counter(sizes.values()).items()),
        histograms=_histograms(chosen),
        kept=_kept(chosen, work),
        dropped=_dropped(chosen, listing),
    )


def histogram(title: str, values: Sequence[float], low: float, high: float) -> Histogram:
    """Of the values; without any its bars are 0."""
    inside = np.clip(np.asarray(values, np.float64), low, high)
    bars, _ = np.histogram(inside, _BINS, (low, high))
    return Histogram(title, low, high, tuple(int(n) for n in bars), float(np.median(inside)) if len(inside) else 0.0)


def _histograms(chosen: Chosen) -> list[Histogram]:
    measured: list[Mapping[str, float]] = [sample.entry.facts["quality"] for sample in chosen.samples]

    def of(name: str) -> list[float]:
        return [one[name] for one in measured]

    return [
        histogram("side of the face, px", of("face_px"), 0, 600),
        histogram("sharpness", of("sharpness"), 0, 3000),
        histogram("yaw, degrees", of("yaw"), -60, 60),
        histogram("pitch, degrees", of("pitch"), -60, 60),
    ]


def _kept(chosen: Chosen, work: DoneWork) -> list[ExamplePicture]:
    """Spread over the whole."""
    step = max(1, len(chosen.samples) // KEPT)
    examples: list[ExamplePicture] = []
    for sample in chosen.samples[::step][:KEPT]:
        record = work.record(sample.entry)
        picture = load_picture(record["png"] if "png" in record else record["jpg"], _LIMITS)
        examples.append(ExamplePicture(_url(picture), sample.person, sample.words.caption))
    return examples


def _dropped(chosen: Chosen, listing: Listing) -> list[tuple[str, list[ExamplePicture]]]:
    """Examples by reason, in the order of the work."""
    by_reason: dict[str, list[Dropped]] = defaultdict(list)
    for one in chosen.dropped:
        by_reason[one.drop.reason].append(one)
    return [
        (reason, [_example(one, listing) for one in by_reason[reason][:EACH]])
        for reason in REASONS
        if by_reason[reason]
    ]


def _example(one: Dropped, listing: Listing) -> ExamplePicture:
    try:
        url = _url(load_picture(listing.path(one.name), _LIMITS))
    except PictureError:
        url = ""
    return ExamplePicture(url, one.name, one.drop.detail)


def _url(picture: Picture) -> str:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((2 * _SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
