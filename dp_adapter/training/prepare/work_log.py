"""The log of finished pictures: one small file for each, named by the sha256 of the picture's content."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import TrainingError
from dp_adapter.training.damaged_files import read_arrays, read_member, tell_damage
from dp_adapter.training.data.sample import read_about
from dp_adapter.training.prepare.picture_result import Drop, PictureResult
from dp_adapter.whole_files import write_whole

_ABOUT = "outcome.json"


@dataclass(frozen=True, eq=False)
class WorkLogEntry:
    """A sample that is not in a shard yet, as far as is needed to compare it with others.

    Attributes:
        digest: of the file it is from; number: which of that file's samples.
        about: the record's JSON; vector: SFace's, [128], of length 1.
    """

    digest: str
    number: int
    key: str
    about: Mapping[str, Any]
    vector: NDArray[np.float32]

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.about["facts"]


class WorkLog:
    """Results of pictures, kept in a folder.

    A file appears whole or not at all, so that a run that was killed goes on with the next picture.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, digest: str) -> bool:
        """Whether the picture's result is there; a file that a power cut left damaged does not count."""
        try:
            self.load(digest)
        except TrainingError:
            return False
        return True

    def save(self, digest: str, result: PictureResult) -> None:
        keys = [str(record["__key__"]) for record in result.records]
        with write_whole(self._path(digest)) as beside, zipfile.ZipFile(beside, "w") as file:
            file.writestr(_ABOUT, json.dumps({"keys": keys, "drops": [asdict(drop) for drop in result.drops]}))
            for number, record in enumerate(result.records):
                for name, value in record.items():
                    if name != "__key__":
                        file.writestr(f"{number}.{name}", value)

    def load(self, digest: str) -> tuple[list[WorkLogEntry], list[Drop]]:
        """Samples (without their pixels) and drops of a finished picture. Raises TrainingError where it is damaged."""
        with self._open(digest) as file:
            result = json.loads(read_member(file, _ABOUT))
            entries: list[WorkLogEntry] = []
            for number, key in enumerate(result["keys"]):
                about, arrays = (read_member(file, f"{number}.{kind}") for kind in ("json", "npz"))
                vector = read_arrays(arrays)["sface"]
                vector = (vector / np.linalg.norm(vector)).astype(np.float32)
                entries.append(WorkLogEntry(digest, number, key, read_about(about), vector))
            boxes = [None if drop["box"] is None else tuple(drop["box"]) for drop in result["drops"]]
            drops = [Drop(d["reason"], d["detail"], box) for d, box in zip(result["drops"], boxes, strict=True)]
            return entries, drops

    def record(self, entry: WorkLogEntry) -> dict[str, Any]:
        """The whole record of a sample, as `Sample.to_record` made it. Raises as `load`."""
        start = f"{entry.number}."
        with self._open(entry.digest) as file:
            names = [name for name in file.namelist() if name.startswith(start)]
            return {"__key__": entry.key, **{name.removeprefix(start): read_member(file, name) for name in names}}

    @contextmanager
    def _open(self, digest: str) -> Generator[zipfile.ZipFile, None, None]:
        path = self._path(digest)
        hint = "Delete it: its picture is looked at again."
        with tell_damage(f"The log of work {path} is damaged", hint), zipfile.ZipFile(path) as file:
            yield file

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.zip"
