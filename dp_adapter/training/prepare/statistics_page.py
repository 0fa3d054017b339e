"""The HTML page about a run: counts, its people, histograms of the faces, examples of kept and dropped pictures."""

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
from dp_adapter.training.prepare.selection import DroppedFile, Selection
from dp_adapter.training.prepare.work_log import WorkLog

KEPT_EXAMPLES, DROPPED_EXAMPLES = 24, 6
"""Examples of kept pictures, and of each reason to drop one."""
LISTED_PEOPLE = 200
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
    """A small picture as a data URL (empty where it cannot be read) with the text below it."""

    url: str
    title: str
    caption: str


def render(manifest: Mapping[str, Any], listing: Listing, selection: Selection, work: WorkLog) -> str:
    """The page as HTML, one file with its pictures inside.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingDependencyError("jinja2", "The statistics page", "train") from None
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    sizes = Counter(sample.person for sample in selection.samples)
    return environment.get_template("statistics.html").render(
        manifest=manifest,
        counts=manifest["counts"],
        likeness=manifest["likeness"],
        reasons=REASONS,
        people=sizes.most_common(LISTED_PEOPLE),
        photos=sorted(Counter(sizes.values()).items()),
        histograms=_make_histograms(selection),
        kept=_kept_examples(selection, work),
        dropped=_dropped_examples(selection, listing),
    )


def make_histogram(title: str, values: Sequence[float], low: float, high: float) -> Histogram:
    """Counts the values in bars; without any value all bars are 0."""
    inside = np.clip(np.asarray(values, np.float64), low, high)
    bars, _ = np.histogram(inside, _BINS, (low, high))
    return Histogram(title, low, high, tuple(int(n) for n in bars), float(np.median(inside)) if len(inside) else 0.0)


def _make_histograms(selection: Selection) -> list[Histogram]:
    measured: list[Mapping[str, float]] = [sample.entry.facts["quality"] for sample in selection.samples]

    def of(name: str) -> list[float]:
        return [one[name] for one in measured]

    return [
        make_histogram("side of the face, px", of("face_px"), 0, 600),
        make_histogram("sharpness", of("sharpness"), 0, 3000),
        make_histogram("yaw, degrees", of("yaw"), -60, 60),
        make_histogram("pitch, degrees", of("pitch"), -60, 60),
    ]


def _kept_examples(selection: Selection, work: WorkLog) -> list[ExamplePicture]:
    """Samples at equal distances over the whole data set."""
    step = max(1, len(selection.samples) // KEPT_EXAMPLES)
    examples: list[ExamplePicture] = []
    for sample in selection.samples[::step][:KEPT_EXAMPLES]:
        record = work.record(sample.entry)
        picture = load_picture(record["png"] if "png" in record else record["jpg"], _LIMITS)
        examples.append(ExamplePicture(_data_url(picture), sample.person, sample.words.caption))
    return examples


def _dropped_examples(selection: Selection, listing: Listing) -> list[tuple[str, list[ExamplePicture]]]:
    """The first examples of each reason, in the order of ``REASONS``."""
    by_reason: dict[str, list[DroppedFile]] = defaultdict(list)
    for one in selection.dropped:
        by_reason[one.drop.reason].append(one)
    return [
        (reason, [_make_example(one, listing) for one in by_reason[reason][:DROPPED_EXAMPLES]])
        for reason in REASONS
        if by_reason[reason]
    ]


def _make_example(one: DroppedFile, listing: Listing) -> ExamplePicture:
    try:
        url = _data_url(load_picture(listing.path(one.name), _LIMITS))
    except PictureError:
        url = ""
    return ExamplePicture(url, one.name, one.drop.detail)


def _data_url(picture: Picture) -> str:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((2 * _SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
