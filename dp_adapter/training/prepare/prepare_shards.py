"""From a folder of pictures to a folder of shards; a run that was interrupted goes on, and ends with the same bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.picture_files import PictureLimits
from dp_adapter.training.prepare import statistics_page
from dp_adapter.training.prepare.examine_picture import examine, open_examiner
from dp_adapter.training.prepare.find_captions import Captions
from dp_adapter.training.prepare.list_pictures import Listing, list_pictures
from dp_adapter.training.prepare.output_folder import OutputFolder
from dp_adapter.training.prepare.picture_result import Drop, Task
from dp_adapter.training.prepare.prepare_options import PrepareOptions
from dp_adapter.training.prepare.selection import DroppedFile, Selection, select
from dp_adapter.training.prepare.shard_writer import fill_in_words, remove_shards, write_shards
from dp_adapter.training.prepare.work_log import WorkLog
from dp_adapter.training.prepare.work_runners import Runner, WorkFunction, bind_arguments, run_here

OnProgress = Callable[[int, int, Mapping[str, int]], None]
"""Called with pictures that are done, all pictures, and counts by reason (``kept``, ``done before``)."""


def prepare(
    folder: Path,
    out: Path,
    options: PrepareOptions,
    *,
    captions: Captions | None = None,
    models: Sequence[Path] = (),
    runner: Runner = run_here,
    progress: OnProgress | None = None,
    keep_work: bool = False,
) -> tuple[Mapping[str, Any], bool]:
    """Writes the shards, ``manifest.json`` and ``statistics.html``.

    Args:
        captions: by sidecar files when None.
        models: folders of encoders that are not shipped.
        keep_work: leave the log of work in place, so that a later run only examines pictures that were added.

    Returns:
        The manifest, and whether it was there already: nothing was done then.

    Raises:
        DPAdapterError: before the work: an input is wrong or a network missing; after it: no picture is left.
    """
    listing = list_pictures(folder, out)
    captions = captions or Captions(folder)
    captions.check(listing.names, options.people == "table")
    _check_folders(listing, options)
    examiner = open_examiner(options, tuple(map(str, models)))
    examiner.check()
    output = OutputFolder(out, options, examiner.versions)
    if (finished := output.begin()) is not None:
        return finished, True
    work = WorkLog(output.work)
    work_function = bind_arguments(examine, options, tuple(map(str, models)))
    names, dropped = _examine_all(listing, work, runner, work_function, progress)
    selection = select(work, names, dropped, options, captions)
    remove_shards(out)
    shards = write_shards(out, _records_in_order(selection, work), round(options.shard_mb * 2**20))
    manifest = output.make_manifest(listing, selection, shards, captions.unreadable)
    output.page.write_text(statistics_page.render(manifest, listing, selection, work), encoding="utf-8")
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


def _examine_all(
    listing: Listing, work: WorkLog, runner: Runner, work_function: WorkFunction, progress: OnProgress | None
) -> tuple[dict[str, str], list[DroppedFile]]:
    """Examines the pictures whose results are not in the log yet.

    Returns:
        The first file of each content, by its sha256, and the files that were dropped without being examined.
    """
    names: dict[str, str] = {}
    dropped: list[DroppedFile] = []
    counts: Counter[str] = Counter()

    def count(*reasons: str) -> None:
        counts.update(reasons)
        if progress is not None:
            progress(counts["files"], len(listing.names), counts)

    def tasks() -> Iterator[Task]:
        for name in listing.names:
            task = _read_task(listing.path(name))
            if isinstance(task, Drop):
                dropped.append(DroppedFile(name, task))
                count("files", task.reason)
            elif task.digest in names:
                dropped.append(DroppedFile(name, Drop("same file", names[task.digest])))
                count("files", "same file")
            else:
                names[task.digest] = name
                if task.digest in work:
                    count("files", "done before")
                else:
                    yield task

    for digest, result in runner(work_function, tasks()):
        work.save(digest, result)
        count("files", *(["kept"] * len(result.records)), *(drop.reason for drop in result.drops))
    return names, dropped


def _read_task(path: Path) -> Task | Drop:
    """Reads a file; drops one that cannot be read or is too large."""
    limit = PictureLimits().file_bytes
    try:
        size = path.stat().st_size
        if size > limit:
            return Drop("unreadable", f"{size / 2**20:.0f} MiB, the limit is {limit / 2**20:.0f}")
        data = path.read_bytes()
    except OSError as error:
        return Drop("unreadable", str(error.strerror or error))
    return Task(hashlib.sha256(data).hexdigest(), data)


def _records_in_order(selection: Selection, work: WorkLog) -> Iterator[dict[str, Any]]:
    """Records in the order of the shards: a person's photos side by side, the people in mixed order."""

    def position(person: str) -> str:
        return hashlib.sha256(person.encode()).hexdigest()

    for sample in sorted(selection.samples, key=lambda sample: (position(sample.person), sample.entry.key)):
        words = sample.words
        facts = {"source": sample.name, "caption": words.origin, "told": dict(words.other_fields)}
        yield fill_in_words(work.record(sample.entry), sample.person, words.caption, facts)
