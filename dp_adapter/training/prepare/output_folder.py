"""The output folder of a run: whether the run may start, go on or is finished there, and its manifest."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from dp_adapter import __version__
from dp_adapter.errors import SettingsError
from dp_adapter.training.data.sample import VERSION
from dp_adapter.training.prepare.list_pictures import Listing
from dp_adapter.training.prepare.picture_result import REASONS
from dp_adapter.training.prepare.prepare_options import PrepareOptions
from dp_adapter.training.prepare.selection import Selection
from dp_adapter.training.prepare.shard_writer import Shard
from dp_adapter.whole_files import sweep, write_whole

MANIFEST, STARTED, PAGE, WORK = "manifest.json", "started.json", "statistics.html", "work"
PACKAGES = ("numpy", "pillow", "opencv-python-headless", "onnxruntime", "scipy", "webdataset")


class OutputFolder:
    """A folder of shards.

    While a run lasts it holds ``started.json`` (options and versions) and ``work/`` (the log of finished pictures); in
    the end ``shard-*.tar``, ``statistics.html`` and, last of all, ``manifest.json``.

    Args:
        networks: fingerprints of the encoders.
    """

    def __init__(self, folder: Path, options: PrepareOptions, networks: Mapping[str, str]) -> None:
        self._folder = folder
        self.work, self.page = folder / WORK, folder / PAGE
        self._request = {
            "options": options.to_json(),
            "versions": {"dp_adapter": __version__, "sample": VERSION, "networks": dict(networks)},
        }

    def begin(self) -> Mapping[str, Any] | None:
        """Makes the folder, or goes on in it.

        Returns:
            The manifest where a run with the same options was finished here and its log of work is gone, else None.

        Raises:
            SettingsError: the folder holds something else, or was begun with other options or versions.
        """
        if self._folder.exists() and not self._folder.is_dir():
            raise SettingsError("out", f"'{self._folder}' is a file", "Give a folder.")
        manifest, started = self._folder / MANIFEST, self._folder / STARTED
        before = _read_json(manifest) if manifest.is_file() else _read_json(started) if started.is_file() else None
        if before is None:
            sweep(self._folder)
            if self._folder.is_dir() and any(self._folder.iterdir()):
                raise SettingsError("out", f"'{self._folder}' is not empty", "Give a new or an empty folder.")
            self._folder.mkdir(parents=True, exist_ok=True)
            _write_json(started, self._request)
            return None
        if changes := _describe_changes(before, self._request):
            raise SettingsError(
                "out",
                f"'{self._folder}' was begun with other options: {'; '.join(changes)}",
                "Give another folder, or the options of before.",
            )
        if manifest.is_file() and not self.work.is_dir():
            return before
        _write_json(started, self._request)
        manifest.unlink(missing_ok=True)  # from here on the shards are not those that it describes
        return None

    def make_manifest(
        self, listing: Listing, selection: Selection, shards: Sequence[Shard], unreadable_captions: int
    ) -> dict[str, Any]:
        """Counts, versions, shards and people of the run; two runs on the same pictures have the same manifest."""
        people: dict[str, list[str]] = defaultdict(list)
        for sample in sorted(selection.samples, key=lambda sample: (sample.person, sample.entry.key)):
            people[sample.person].append(sample.entry.key)
        dropped = Counter(one.drop.reason for one in selection.dropped)
        versions = cast("dict[str, Any]", self._request["versions"])
        closeness = selection.closeness
        return {
            "what": "dp-adapter shards",
            "options": self._request["options"],
            "versions": {**versions, "packages": {name: _package_version(name) for name in PACKAGES}},
            "counts": {
                "pictures": len(listing.names),
                "other_files": listing.others,
                "samples": len(selection.samples),
                "people": len(people),
                "dropped": {reason: dropped[reason] for reason in REASONS if dropped[reason]},
                "captions": dict(sorted(Counter(sample.words.origin for sample in selection.samples).items())),
                "unreadable_captions": unreadable_captions,
            },
            "likeness": {
                "within_mean": round(sum(closeness.within) / len(closeness.within), 4) if closeness.within else None,
                "within_least": round(min(closeness.within), 4) if closeness.within else None,
                "between_most": round(closeness.between, 4),
                "doubtful_pairs_of_people": closeness.doubtful,
            },
            "shards": [{**asdict(shard), "keys": list(shard.keys)} for shard in shards],
            "people": dict(people),
        }

    def finish(self, manifest: Mapping[str, Any], keep_work: bool) -> None:
        """Writes the manifest, which makes the folder complete, and clears up."""
        _write_json(self._folder / MANIFEST, manifest)
        (self._folder / STARTED).unlink(missing_ok=True)
        if not keep_work:
            shutil.rmtree(self.work, ignore_errors=True)


def _describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two requests, in words; the packages' versions may differ."""
    words: list[str] = []
    for part in ("options", "versions"):
        old, new = cast("dict[str, Any]", before.get(part, {})), cast("dict[str, Any]", now[part])
        for name in sorted((old.keys() | new.keys()) - {"packages"}):
            if old.get(name) != new.get(name):
                words.append(f"{name} {old.get(name)}, now {new.get(name)}")
    return words


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise SettingsError("out", f"'{path}' is damaged", "Give another folder.") from error


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with write_whole(path) as beside:
        beside.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def _package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
