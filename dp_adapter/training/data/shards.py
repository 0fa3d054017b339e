"""WebDataset shards with random access: where every file of every sample lies, found in one pass over the tars.

A stream's order is a state of its workers; a numbered sample is not, so a run can be resumed to the bit. The shards are
the plain tar files of `webdataset`; their members are read by offset.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import TrainingError
from dp_adapter.training.data.sample import Sample

_FILES = ("json", "npz", "labels.png")  # and the picture


@dataclass(frozen=True)
class ShardEntry:
    """A sample: its tar, and offset and size of each of its files there."""

    key: str
    person: str
    shard: int
    files: dict[str, tuple[int, int]]


class Shards:
    """Samples by number, in the order of the shards.

    Args:
        patterns: names of tar files, with wildcards.

    Raises:
        TrainingError: a pattern matches nothing, or a file is no tar of whole samples.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.paths = [path for pattern in patterns for path in _matching(pattern)]
        self.entries = [entry for number, path in enumerate(self.paths) for entry in _entries(path, number)]
        if not self.entries:
            raise TrainingError(
                f"There are no samples in {', '.join(patterns)}", "Make shards with: dp-adapter prepare."
            )
        self.of_person: dict[str, list[int]] = {}
        for number, entry in enumerate(self.entries):
            self.of_person.setdefault(entry.person, []).append(number)

    def __len__(self) -> int:
        return len(self.entries)

    def sample(self, number: int) -> Sample:
        """A whole sample. Raises TrainingError where it is damaged."""
        entry = self.entries[number]
        try:
            return Sample.from_record({"__key__": entry.key, **self._bytes(entry, tuple(entry.files))})
        except (KeyError, ValueError, OSError) as error:
            raise self._damaged(entry, error) from error

    def about(self, number: int) -> dict[str, Any]:
        """The text and numbers of a sample; its pictures are not read."""
        return json.loads(self._bytes(self.entries[number], ("json",))["json"])

    def embeddings(self, number: int) -> dict[str, NDArray[np.float32]]:
        """Its embeddings by name; its pictures are not read. Raises TrainingError where they are damaged."""
        entry = self.entries[number]
        try:
            with np.load(io.BytesIO(self._bytes(entry, ("npz",))["npz"]), allow_pickle=False) as arrays:
                return {name: np.asarray(arrays[name], np.float32) for name in arrays.files}
        except (ValueError, OSError) as error:
            raise self._damaged(entry, error) from error

    def _damaged(self, entry: ShardEntry, error: Exception) -> TrainingError:
        problem = f"Sample {entry.key} in {self.paths[entry.shard].name} is damaged ({error})"
        return TrainingError(problem, "Make this shard again.")

    def _bytes(self, entry: ShardEntry, names: Sequence[str]) -> dict[str, bytes]:
        with self.paths[entry.shard].open("rb") as file:
            found: dict[str, bytes] = {}
            for name in names:
                offset, size = entry.files[name]
                file.seek(offset)
                found[name] = file.read(size)
        return found


def _matching(pattern: str) -> list[Path]:
    path = Path(pattern)
    found = sorted(path.parent.glob(path.name))
    if not found:
        raise TrainingError(f"No shard is named {pattern}", "Check data.shards, or make some with: dp-adapter prepare.")
    return found


def _entries(path: Path, shard: int) -> list[ShardEntry]:
    """Raises TrainingError: the file is no tar, or a sample in it is not whole."""
    files: dict[str, dict[str, tuple[int, int]]] = {}
    people: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                key = folder + slash + key
                files.setdefault(key, {})[kind] = (member.offset_data, member.size)
                if kind == "json":
                    content = tar.extractfile(member)
                    assert content is not None, "it is a file"
                    people[key] = str(json.load(content)["person"])
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is no shard of training samples ({error})", "Make it again.") from error
    for key, own in files.items():
        missing = [name for name in _FILES if name not in own] or [
            name for name in ("jpg",) if not {"jpg", "png"} & {*own}
        ]
        if missing:
            raise TrainingError(
                f"Sample {key} in {path.name} has no {missing[0]}", "The shard was cut off: make it again."
            )
    return [ShardEntry(key, people[key], shard, own) for key, own in files.items()]
