"""WebDataset shards of bounded size, each written whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_adapter.errors import MissingDependencyError
from dp_adapter.weights.files import file_digest
from dp_adapter.whole_files import write_whole

PATTERN = "shard-[0-9][0-9][0-9][0-9][0-9][0-9].tar"
_BLOCK = 512  # of a tar file: a header for each member, its content filled up
_END = 20 * _BLOCK  # what closes a tar file, at most


@dataclass(frozen=True)
class Shard:
    """A written file: its name, sha256, size in bytes, and keys of its samples."""

    name: str
    sha256: str
    size: int
    keys: tuple[str, ...]


def write_shards(folder: Path, records: Iterable[Mapping[str, Any]], limit: int) -> list[Shard]:
    """Writes ``shard-000000.tar`` and so on; the same records give the same bytes.

    Args:
        limit: bytes of a shard, unless one sample alone is larger.

    Raises:
        MissingDependencyError: webdataset is not installed. OSError: the disk is full.
    """
    shards: list[Shard] = []
    for number, batch in enumerate(_split_into_shards(records, limit)):
        name = f"shard-{number:06}.tar"
        with write_whole(folder / name) as beside:
            with beside.open("wb") as file:
                _write_tar(file, batch)
            size, digest = beside.stat().st_size, file_digest(beside)
        shards.append(Shard(name, digest, size, tuple(str(record["__key__"]) for record in batch)))
    return shards


def remove_shards(folder: Path) -> None:
    """Removes all shards of a folder."""
    for path in folder.glob(PATTERN):
        path.unlink()


def fill_in_words(record: Mapping[str, Any], person: str, caption: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Fills person, caption and more facts into a record of `Sample.to_record`; its pictures' bytes stay the same."""
    about = json.loads(record["json"])
    about |= {"person": person, "caption": caption, "facts": {**about["facts"], **facts}}
    return {**record, "json": json.dumps(about).encode()}


def _split_into_shards(records: Iterable[Mapping[str, Any]], limit: int) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    used = _END
    for record in records:
        size = sum(2 * _BLOCK + len(value) for name, value in record.items() if name != "__key__")
        if batch and used + size > limit:
            yield batch
            batch, used = [], _END
        batch.append(record)
        used += size
    if batch:
        yield batch


def _write_tar(file: io.BufferedWriter, records: Iterable[Mapping[str, Any]]) -> None:
    try:
        from webdataset.writer import TarWriter
    except ImportError:
        raise MissingDependencyError("webdataset", "Writing shards", "train") from None
    with TarWriter(file, encoder=False, mtime=0) as writer:
        for record in records:
            writer.write(dict(record))
