"""The adapter files in the model folders, and the variants that users named for files whose keys leave a choice."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Sequence
from pathlib import Path

from dp_adapter import catalog
from dp_adapter.errors import WeightsError
from dp_adapter.user_files import is_file, read_json
from dp_adapter.weights.files import SUFFIXES, file_digest
from dp_adapter.whole_files import write_whole

_LISTED = 8  # models that a message names
FOLDERS = ("dp_adapter", "ipadapter", "ControlNet", "instantid", "pulid")
ANSWERS = "variants.json"
_ENCODERS = ("clip_vision", "face")  # kinds of the catalogue
_RES_ADAPTER = ("resadapter", "res_adapter", "res-adapter")  # begins the folder of one
_OTHERS = frozenset({"identities", "latents", "w_directions", "demo"})
"""Folders whose files have the same endings; the demo's adapter fits no checkpoint but the demo's."""


class Library:
    """Adapters under ``<root>/<folder>`` for every known folder, by file name.

    Args:
        roots: model folders, searched in order; the first one also keeps the answers.
        paths_allowed: whether a model may be named by a path outside them (never for requests over a network).
        folders: further folders that hold adapters themselves, searched last.
    """

    def __init__(self, roots: Sequence[Path], paths_allowed: bool, folders: Sequence[Path] = ()) -> None:
        self._roots = tuple(roots)
        self._paths_allowed = paths_allowed
        self._folders = (*(root / name for root in roots for name in FOLDERS), *folders)

    def files(self) -> dict[str, Path]:
        """Every candidate by name without folder; the first folder wins. Files are not opened.

        Known encoders that lie beside adapters are none, nor are ResAdapters, which all have the same file names, nor
        is a base model with its configurations beside it.
        """
        encoders = {model.filename for model in catalog.load() if model.kind in _ENCODERS}
        found: dict[str, Path] = {}
        for folder in self._folders:
            if not folder.is_dir():
                continue
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder).parts[:-1]
                if _OTHERS & set(inside) or any(part.lower().startswith(_RES_ADAPTER) for part in inside):
                    continue
                candidate = path.suffix.lower() in SUFFIXES and path.name not in encoders and is_file(path)
                if candidate and not (path.with_suffix("") / "model_index.json").is_file():
                    found.setdefault(path.name, path)
        return found

    def resolve(self, name: str) -> Path:
        """The file of a model; an empty name means the only one there is.

        Raises:
            WeightsError: there is no such model, or no name and several models.
        """
        files = self.files()
        if name in files:
            return files[name]
        by_stem = [path for path in files.values() if path.stem == name]
        if len(by_stem) == 1:
            return by_stem[0]
        if not name:
            if len(files) == 1:
                return next(iter(files.values()))
            some = ", ".join(sorted(files)[:_LISTED]) or "none found"
            more = f" and {len(files) - _LISTED} more" if len(files) > _LISTED else ""
            raise WeightsError("No model was chosen", f"Choose one of: {some}{more}.")
        if self._paths_allowed and (path := _file(name)) is not None:
            return path
        stems = {path.stem: known for known, path in files.items()}  # endings alike say nothing
        near = [stems[stem] for stem in difflib.get_close_matches(Path(name).stem, list(stems), n=1)]
        where = ", ".join(str(root / FOLDERS[0]) for root in self._roots)
        raise WeightsError(
            f"There is no model '{name[:80]}'", f"Did you mean '{near[0]}'?" if near else f"Put it into {where}."
        )

    def companions(self) -> list[str]:
        """Folders of ResAdapters, by name."""
        places = (place for place in self._folders if place.is_dir())
        folders = (folder for place in places for folder in place.rglob("*") if folder.is_dir())
        return sorted({folder.name for folder in folders if folder.name.lower().startswith(_RES_ADAPTER)})

    def folder_or_file(self, name: str) -> Path:
        """A model that may be a folder of files, by the folder's name; otherwise as `resolve`."""
        for place in self._folders:
            for folder in sorted(place.rglob("*")) if place.is_dir() else ():
                if folder.name == name and folder.is_dir() and _OTHERS.isdisjoint(folder.relative_to(place).parts):
                    return folder
        if self._paths_allowed and name and Path(name).expanduser().is_dir():
            return Path(name).expanduser()
        return self.resolve(name)

    def variant(self, path: Path) -> str | None:
        """The variant that the user named for a file with this content; None where they named none."""
        answers = self._answers()
        return answers.get(file_digest(path)) if answers else None

    def remember(self, path: Path, variant: str) -> None:
        """Keeps the variant that the user named for a file's content, where the models folder can be written."""
        digest = file_digest(path)
        answers = self._answers()
        if answers.get(digest) == variant:
            return
        store = self._store()
        # a models folder that only others may write: the answer serves this once
        with contextlib.suppress(OSError), write_whole(store) as beside:
            beside.write_text(json.dumps({**answers, digest: variant}, indent=1), encoding="utf-8")

    def _store(self) -> Path:
        return self._roots[0] / FOLDERS[0] / ANSWERS

    def _answers(self) -> dict[str, str]:
        if not is_file(self._store()):
            return {}
        try:
            return {str(key): str(value) for key, value in read_json(self._store()).items()}
        except (OSError, ValueError, AttributeError) as error:
            problem = f"{self._store()} is not a JSON object ({error})"
            raise WeightsError(problem, "Delete it; it is written anew.") from error


def _file(name: str) -> Path | None:
    """The file of this path; None where there is none or where no path can be this long."""
    try:
        path = Path(name).expanduser()
        return path if is_file(path) else None
    except RuntimeError:  # somebody's home who is not here
        return None
