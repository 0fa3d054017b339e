"""WebDataset shards with random access: where every file of every sample lies, found in one pass over the tars.

A stream's order is a state of its workers; a numbered sample is not, so a run can be resumed to the bit. The shards are
the plain tar files of `webdataset`; their members are read by offset.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import TrainingError
from dp_adapter.training.damaged_files import read_arrays, tell_damage
from dp_adapter.training.data.sample import Sample, read_about

_FILES = ("json", "npz", "labels.png")  # and the picture
_MOST_TEXT, _MOST_FILE = 2**20, 2**28  # bytes


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
        with self._tell_damage(entry):
            return Sample.from_record({"__key__": entry.key, **self._bytes(entry, tuple(entry.files))})

    def about(self, number: int) -> dict[str, Any]:
        """The text and numbers of a sample; its pictures are not read. Raises TrainingError where they are damaged."""
        entry = self.entries[number]
        with self._tell_damage(entry):
            return read_about(self._bytes(entry, ("json",))["json"])

    def embeddings(self, number: int) -> dict[str, NDArray[np.float32]]:
        """Its embeddings by name; its pictures are not read. Raises TrainingError where they are damaged."""
        entry = self.entries[number]
        with self._tell_damage(entry):
            return read_arrays(self._bytes(entry, ("npz",))["npz"])

    def _tell_damage(self, entry: ShardEntry) -> AbstractContextManager[None]:
        return tell_damage(f"Sample {entry.key} in {self.paths[entry.shard].name} is damaged", "Make this shard again.")

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
    if path.exists() and not path.is_file():  # a named pipe would be waited for
        raise TrainingError(f"{path} is no file", "Give names of tar files, as in shards/*.tar.")
    files: dict[str, dict[str, tuple[int, int]]] = {}
    people: dict[str, str] = {}
    told = tell_damage(f"{path} is no shard of training samples", "Make it again with: dp-adapter prepare.")
    with told, tarfile.open(path, "r:", tarinfo=_ShardMember, encoding="utf-8", errors="backslashreplace") as tar:
        for member in tar:
            if not member.isreg():
                continue
            folder, slash, name = member.name.rpartition("/")
            key, _, kind = name.partition(".")
            key = folder + slash + key
            files.setdefault(key, {})[kind] = (member.offset_data, member.size)
            if kind == "json":
                content = tar.extractfile(member)
                assert content is not None, "it is a file"
                people[key] = read_about(content.read())["person"]
        _require_end(path, tar)
    for key, own in files.items():
        missing = [name for name in _FILES if name not in own] or [
            name for name in ("jpg",) if not {"jpg", "png"} & {*own}
        ]
        if missing:
            raise TrainingError(
                f"Sample {key} in {path.name} has no {missing[0]}", "The shard was cut off: make it again."
            )
    return [ShardEntry(key, people[key], shard, own) for key, own in files.items()]


class _ShardMember(tarfile.TarInfo):
    """A header whose size is looked at before anything is read by it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _ShardMember:
        member = super().frombuf(buf, encoding, errors)
        small = not member.isreg() or member.name.endswith(".json")
        most = _MOST_TEXT if small else _MOST_FILE
        if not 0 <= member.size <= most:
            raise ValueError(f"{member.name[:80]} has {member.size} bytes, the limit is {most}")
        return member


def _require_end(path: Path, tar: tarfile.TarFile) -> None:
    """Raises ValueError where the last header is no end, which tarfile takes for one."""
    with path.open("rb") as file:
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("it is cut off, or a header in it is damaged")
