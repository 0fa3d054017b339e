"""Which samples are kept, and who is in them: the decisions that need all samples at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dp_adapter.training.prepare.face_groups import (
    Closeness,
    find_near_duplicates,
    group_people,
    measure_closeness,
    rank_best_first,
)
from dp_adapter.training.prepare.find_captions import Captions, FoundCaption
from dp_adapter.training.prepare.picture_result import Drop
from dp_adapter.training.prepare.prepare_options import PrepareOptions
from dp_adapter.training.prepare.work_log import WorkLog, WorkLogEntry


@dataclass(frozen=True)
class DroppedFile:
    """A file and why it, or a face of it, is left out."""

    name: str
    drop: Drop


@dataclass(frozen=True, eq=False)
class KeptSample:
    """A sample that goes into a shard: the file it is from, who it is, and its caption."""

    entry: WorkLogEntry
    name: str
    person: str
    words: FoundCaption


@dataclass(frozen=True, eq=False)
class Selection:
    """What is kept, what is not, and how well its people stand closeness."""

    samples: tuple[KeptSample, ...]
    dropped: tuple[DroppedFile, ...]
    closeness: Closeness


def select(
    work: WorkLog, names: Mapping[str, str], dropped: list[DroppedFile], options: PrepareOptions, captions: Captions
) -> Selection:
    """Leaves out near duplicates, names the people, and leaves out people of too few photos.

    Args:
        names: file by sha256 of its content; dropped: what was dropped already.

    Raises:
        IdentityError: there are too many faces to tell closeness. MissingDependencyError: scipy is missing.
    """
    entries: list[WorkLogEntry] = []
    dropped = list(dropped)
    for digest, name in names.items():
        found, drops = work.load(digest)
        entries += found
        dropped += [DroppedFile(name, drop) for drop in drops]
    entries.sort(key=lambda entry: entry.key)
    entries, duplicates = _drop_near_duplicates(entries, names, options)
    people = _name_people(entries, names, options, captions)
    counts = Counter(people)
    samples: list[KeptSample] = []
    for entry, person in zip(entries, people, strict=True):
        name = names[entry.digest]
        if counts[person] < options.min_photos:
            duplicates.append(DroppedFile(name, Drop("few photos", f"{counts[person]} of {person}")))
        else:
            samples.append(KeptSample(entry, name, person, captions.find(name, entry.facts["fields"])))
    vectors = _stack_vectors([sample.entry for sample in samples])
    _, numbers = np.unique([sample.person for sample in samples], return_inverse=True)
    closeness = measure_closeness(vectors, numbers.astype(np.intp), options.same)
    return Selection(tuple(samples), tuple(sorted([*dropped, *duplicates], key=_sort_key)), closeness)


def _sort_key(one: DroppedFile) -> tuple[str, str, str]:
    return one.name, one.drop.reason, one.drop.detail


def _drop_near_duplicates(
    entries: list[WorkLogEntry], names: Mapping[str, str], options: PrepareOptions
) -> tuple[list[WorkLogEntry], list[DroppedFile]]:
    if not entries:
        return [], []
    order = rank_best_first(
        [entry.facts["suitability"] for entry in entries],
        [entry.facts["quality"]["face_px"] for entry in entries],
        [entry.key for entry in entries],
    )
    hashes = np.array([int(entry.facts["hash"], 16) for entry in entries], np.uint64)
    kept_of = find_near_duplicates(_stack_vectors(entries), hashes, order, options.near_bits, options.near_cosine)
    better_ones: list[int] = kept_of.tolist()
    kept: list[WorkLogEntry] = []
    duplicates: list[DroppedFile] = []
    for entry, better in zip(entries, (entries[index] for index in better_ones), strict=True):
        if better is entry:
            kept.append(entry)
        else:
            duplicates.append(DroppedFile(names[entry.digest], Drop("near duplicate", f"of {names[better.digest]}")))
    return kept, duplicates


def _name_people(
    entries: list[WorkLogEntry], names: Mapping[str, str], options: PrepareOptions, captions: Captions
) -> list[str]:
    """The person of each entry."""
    if options.people == "folders":
        return [names[entry.digest].split("/")[0] for entry in entries]
    if options.people == "table":
        return [captions.find_person(names[entry.digest]) for entry in entries]
    if not entries:
        return []
    numbers = group_people(_stack_vectors(entries), options.same)
    first: dict[int, str] = {}
    for number, entry in zip(numbers.tolist(), entries, strict=True):
        first.setdefault(number, f"person-{entry.key}")
    return [first[number] for number in numbers.tolist()]


def _stack_vectors(entries: list[WorkLogEntry]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """[N, 128], also of no entry."""
    return np.array([entry.vector for entry in entries], np.float32).reshape(len(entries), 128)
