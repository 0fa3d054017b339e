"""From a folder of pictures to a folder of shards; a run that was cut goes on, and ends the same.

The output folder holds ``started.json`` (what was asked for) and ``work/`` (what is done) while the run lasts, and
``shard-*.tar``, ``manifest.json`` and ``statistics.html`` in the end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.picture_files import PictureLimits
from dp_adapter.training.prepare import statistics_page
from dp_adapter.training.prepare.examine_picture import look, looker
from dp_adapter.training.prepare.find_captions import Captions
from dp_adapter.training.prepare.list_pictures import Listing, pictures_in
from dp_adapter.training.prepare.output_folder import Output
from dp_adapter.training.prepare.picture_result import Drop, Task
from dp_adapter.training.prepare.prepare_options import PrepareOptions
from dp_adapter.training.prepare.selection import Chosen, Dropped, choose
from dp_adapter.training.prepare.shard_writer import remove_shards, with_words, write_shards
from dp_adapter.training.prepare.work_log import DoneWork
from dp_adapter.training.prepare.work_runners import Runner, Work, bound, here

Tell = Callable[[int, int, Mapping[str, int]], None]
"""Hears of progress: pictures that are done, all pictures, and counts by reason (``kept``, ``done before``)."""


def prepare(
    folder: Path,
    out: Path,
    options: PrepareOptions,
    *,
    captions: Captions | None = None,
    models: Sequence[Path] = (),
    runner: Runner = here,
    tell: Tell | None = None,
    keep_work: bool = False,
) -> tuple[Mapping[str, Any], bool]:
    """Writes the shards, ``manifest.json`` and ``statistics.html``.

    Args:
        captions: by sidecar files when None.
        models: folders of encoders that are not shipped.
        keep_work: leave the log of work in place, so that pictures that are added later are all that is looked at.

    Returns:
        The manifest, and whether it was there already: nothing was done then.

    Raises:
        DPAdapterError: in words; of what can be known before the work, before it.
    """
    listing = pictures_in(folder, out)
    captions = captions or Captions(folder)
    captions.check(listing.names, options.people == "table")
    _check_folders(listing, options)
    networks = looker(options, tuple(map(str, models)))
    networks.check()
    output = Output(out, options, networks.versions)
    if (finished := output.begin()) is not None:
        return finished, True
    work = DoneWork(output.work)
    function = bound(look, options, tuple(map(str, models)))
    names, dropped = _look_at_all(listing, work, runner, function, tell)
    chosen = choose(work, names, dropped, options, captions)
    remove_shards(out)
    shards = write_shards(out, _records(chosen, work), round(options.shard_mb * 2**20))
    manifest = output.manifest(listing, chosen, shards, captions.unreadable)
    output.page.write_text(statistics_page.page(manifest, listing, chosen, work), encoding="utf-8")
    if not shards:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["counts"]["dropped"].items())
        raise PictureError(f"No picture is left: {reasons}", f"See {output.page}, and loosen what drops them.")
    output.finish(manifest, keep_work)
    return manifest, False


def _check_folders(listing: Listing, options: PrepareOptions) -> None:
    loose = [name for name in listing.names if "/" not in name]
    if options.people == "folders" and loose:
        raise PictureError(
            f"{len(loose)} pictures lie in no sub-folder, as '{loose[0]}', and folders are to name the people",
            "Move them into a folder of their person's, or use --people faces.",
        )


def _look_at_all(
    listing: Listing, work: DoneWork, runner: Runner, function: Work, tell: Tell | None
) -> tuple[dict[str, str], list[Dropped]]:
    """Looks at what is not done yet.

    Returns:
        The first file of each content, by its sha256, and the files that are dropped without a look.
    """
    names: dict[str, str] = {}
    dropped: list[Dropped] = []
    counts: Counter[str] = Counter()

    def told(*reasons: str) -> None:
        counts.update(reasons)
        if tell is not None:
            tell(counts["files"], len(listing.names), counts)

    def tasks() -> Iterator[Task]:
        for name in listing.names:
            task = _read(listing.path(name))
            if isinstance(task, Drop):
                dropped.append(Dropped(name, task))
                told("files", task.reason)
            elif task.digest in names:
                dropped.append(Dropped(name, Drop("same file", names[task.digest])))
                told("files", "same file")
            else:
                names[task.digest] = name
                if task.digest in work:
                    told("files", "done before")
                else:
                    yield task

    for digest, outcome in runner(function, tasks()):
        work.save(digest, outcome)
        told("files", *(["kept"] * len(outcome.records)), *(drop.reason for drop in outcome.drops))
    return names, dropped


def _read(path: Path) -> Task | Drop:
    """A file's content and its sha256."""
    limit = PictureLimits().file_bytes
    try:
        size = path.stat().st_size
        if size > limit:
            return Drop("unreadable", f"{size / 2**20:.0f} MiB, the limit is {limit / 2**20:.0f}")
        data = path.read_bytes()
    except OSError as error:
        return Drop("unreadable", str(error.strerror or error))
    return Task(hashlib.sha256(data).hexdigest(), data)


def _records(chosen: Chosen, work: DoneWork) -> Iterator[dict[str, Any]]:
    """In the order of shards: a person's photos side by side, so that a reader finds another one near; people mixed."""

    def place(person: str) -> str:
        return hashlib.sha256(person.encode()).hexdigest()

    for sample in sorted(chosen.samples, key=lambda sample: (place(sample.person), sample.entry.key)):
        words = sample.words
        facts = {"source": sample.name, "caption": words.origin, "told": dict(words.told)}
        yield with_words(work.record(sample.entry), sample.person, words.caption, facts)
