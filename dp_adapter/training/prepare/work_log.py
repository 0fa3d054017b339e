"""The log of finished pictures: one small file for each, named by the sha256 of the picture's content."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_adapter.training.prepare.picture_result import Drop, PictureResult

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
        """Samples (without their pixels) and drops of a finished picture."""
        with zipfile.ZipFile(self._path(digest)) as file:
            result = json.loads(file.read(_ABOUT))
            entries: list[WorkLogEntry] = []
            for number, key in enumerate(result["keys"]):
                about = json.loads(file.read(f"{number}.json"))
                with np.load(io.BytesIO(file.read(f"{number}.npz")), allow_pickle=False) as arrays:
                    vector = np.asarray(arrays["sface"], np.float32)
                vector = (vector / np.linalg.norm(vector)).astype(np.float32)
                entries.append(WorkLogEntry(digest, number, key, about, vector))
        boxes = [None if drop["box"] is None else tuple(drop["box"]) for drop in result["drops"]]
        drops = [Drop(d["reason"], d["detail"], box) for d, box in zip(result["drops"], boxes, strict=True)]
        return entries, drops

    def record(self, entry: WorkLogEntry) -> dict[str, Any]:
        """The whole record of a sample, as `Sample.to_record` made it."""
        start = f"{entry.number}."
        with zipfile.ZipFile(self._path(entry.digest)) as file:
            parts = {name.removeprefix(start): file.read(name) for name in file.namelist() if name.startswith(start)}
        return {"__key__": entry.key, **parts}

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.zip"
