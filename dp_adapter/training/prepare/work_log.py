"""The log of work that is done: one small file for each picture, by the sha256 of its content."""

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
    """A sample that waits for its shard: what is needed to compare it with others.

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


class DoneWork:
    """Outcomes in a folder.

    A file appears whole or not at all, so that a run that was killed goes on with the next picture.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, digest: str) -> bool:
        """Whether the picture is done; a file that a power cut left damaged is not."""
        try:
            with zipfile.ZipFile(self._path(digest)):
                return True
        except (OSError, zipfile.BadZipFile):
            return False

    def save(self, digest: str, outcome: PictureResult) -> None:
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        keys = [str(record["__key__"]) for record in outcome.records]
        with zipfile.ZipFile(part, "w") as file:
            file.writestr(_ABOUT, json.dumps({"keys": keys, "drops": [asdict(drop) for drop in outcome.drops]}))
            for number, record in enumerate(outcome.records):
                for name, value in record.items():
                    if name != "__key__":
                        file.writestr(f"{number}.{name}", value)
        part.replace(path)

    def load(self, digest: str) -> tuple[list[WorkLogEntry], list[Drop]]:
        """What is known of a picture that is done, without its pixels."""
        with zipfile.ZipFile(self._path(digest)) as file:
            outcome = json.loads(file.read(_ABOUT))
            entries: list[WorkLogEntry] = []
            for number, key in enumerate(outcome["keys"]):
                about = json.loads(file.read(f"{number}.json"))
                with np.load(io.BytesIO(file.read(f"{number}.npz")), allow_pickle=False) as arrays:
                    vector = np.asarray(arrays["sface"], np.float32)
                vector = (vector / np.linalg.norm(vector)).astype(np.float32)
                entries.append(WorkLogEntry(digest, number, key, about, vector))
        boxes = [None if drop["box"] is None else tuple(drop["box"]) for drop in outcome["drops"]]
        drops = [Drop(d["reason"], d["detail"], box) for d, box in zip(outcome["drops"], boxes, strict=True)]
        return entries, drops

    def record(self, entry: WorkLogEntry) -> dict[str, Any]:
        """The sample's files, as `Sample.to_record` gave them."""
        start = f"{entry.number}."
        with zipfile.ZipFile(self._path(entry.digest)) as file:
            parts = {name.removeprefix(start): file.read(name) for name in file.namelist() if name.startswith(start)}
        return {"__key__": entry.key, **parts}

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.zip"
