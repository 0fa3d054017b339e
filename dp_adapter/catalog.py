"""Known model files: where they come from, what they must be, and how to get one safely.

The rows are in ``catalog.json``; each checksum was read in the place its ``source`` names.
Nothing is fetched unless the caller asks, and nothing is kept that does not match.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from dp_adapter.download import Progress, download, is_https, sha256_of
from dp_adapter.errors import CatalogError
from dp_adapter.hints import command
from dp_adapter.user_files import is_file, list_folder

Kind = Literal["adapter", "lora", "controlnet", "clip_vision", "face"]
Base = Literal["sd15", "sdxl", "any"]

KINDS: tuple[Kind, ...] = ("adapter", "lora", "controlnet", "clip_vision", "face")
BASES: tuple[Base, ...] = ("sd15", "sdxl", "any")
PACKS = "insightface/models"  # a folder of each pack's name lies there
# Letters first and last: no '..', no absolute path, no drive letter, no backslash, no trailing dot (Windows drops it).
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class ModelFile:
    """One known file.

    Attributes:
        folder: where it belongs, relative to a models directory, with '/'; empty for the directory itself.
        url: https address of the file; of its page where the file cannot be fetched.
        page: https address a person can open.
        size: bytes, and ``sha256``: 64 hex digits; both or neither are known.
        source: repository@commit and path in which the checksum was read.
        shipped: the file is part of this repository.

    Raises:
        CatalogError: a field is missing, unsafe or contradictory.
    """

    id: str
    title: str
    kind: Kind
    family: str
    base: Base
    filename: str
    folder: str
    url: str
    page: str
    size: int | None
    sha256: str | None
    licence: str
    note: str
    source: str
    shipped: bool = False

    def __post_init__(self) -> None:
        where = f"catalogue row '{self.id}'"
        for name in ("id", "title", "family", "licence"):
            if not getattr(self, name):
                raise CatalogError(f"{where}: {name} is empty")
        if self.kind not in KINDS or self.base not in BASES:
            raise CatalogError(f"{where}: kind '{self.kind}' or base '{self.base}' is unknown")
        for part in [self.filename, *(self.folder.split("/") if self.folder else [])]:
            if not _NAME.fullmatch(part):
                raise CatalogError(f"{where}: '{part}' is not a safe file or folder name")
        if not (is_https(self.url) and is_https(self.page)):
            raise CatalogError(f"{where}: url and page must start with https://")
        if (self.size is None) != (self.sha256 is None):
            raise CatalogError(f"{where}: size and sha256 must both be given or both be null")
        if self.size is not None and self.size <= 0:
            raise CatalogError(f"{where}: size {self.size} is not positive")
        if self.sha256 is not None and not (re.fullmatch(r"[0-9a-f]{64}", self.sha256) and self.source):
            raise CatalogError(f"{where}: sha256 must be 64 lower-case hex digits and have a source")

    def path_in(self, root: Path) -> Path:
        """Where the file belongs below the models directory ``root``."""
        return root / self.folder / self.filename


def parse(text: str) -> tuple[ModelFile, ...]:
    """Read a catalogue; raises CatalogError on an unknown version, a bad row or an id given twice."""
    document = json.loads(text)
    if document.get("version") != 1:
        raise CatalogError(f"catalogue version {document.get('version')!r} is unknown", "Update dp_adapter.")
    known = {field.name for field in fields(ModelFile)}
    models: list[ModelFile] = []
    for row in document["models"]:
        if odd := (known ^ set(row)) - {"shipped"}:
            raise CatalogError(f"catalogue row '{row.get('id')}': fields missing or unknown: {', '.join(sorted(odd))}")
        models.append(ModelFile(**row))
    ids = [model.id for model in models]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise CatalogError(f"catalogue ids given twice: {', '.join(twice)}")
    return tuple(models)


@functools.cache
def load() -> tuple[ModelFile, ...]:
    """The catalogue beside this module, read once."""
    return parse(Path(__file__).with_name("catalog.json").read_text(encoding="utf-8"))


def find(query: str) -> ModelFile:
    """The model with this id or file name, upper or lower case.

    Raises:
        CatalogError: unknown (names the nearest) or a file name of several models (names them).
    """
    wanted = query.strip().casefold()
    models = load()
    hits = [m for m in models if m.id.casefold() == wanted] or [m for m in models if m.filename.casefold() == wanted]
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise CatalogError(f"'{query}' is the file name of several models", f"Use one of: {_names(hits)}.")
    names = {name.casefold(): m for m in models for name in (m.id, m.filename)}
    near = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.5)
    hint = f"Nearest: {_names([names[n] for n in near])}." if near else f"See {command('models list')}."
    raise CatalogError(f"no model '{query}' in the catalogue", hint)


def find_all(query: str) -> tuple[ModelFile, ...]:
    """The model with this id or file name, or all files of an insightface pack by the pack's name.

    Raises as `find`.
    """
    pack = tuple(m for m in load() if m.family == query.strip().casefold() and m.folder == f"{PACKS}/{m.family}")
    return pack or (find(query),)


def locate(model: ModelFile, roots: Sequence[Path]) -> Path | None:
    """The file in the first of ``roots`` that has it, unchecked; None if none has.

    In each root: its own folder, the root itself, then the root's direct subfolders by name.
    """
    for root in roots:
        below = [child for child in list_folder(root) if child.is_dir()]
        for path in [model.path_in(root), *(folder / model.filename for folder in (root, *below))]:
            if is_file(path):
                return path
    return None


def missing_error(model: ModelFile, roots: Sequence[Path]) -> CatalogError:
    """The error that a file is needed and in none of the model folders: what it is, and the ways to get it."""
    folder = (roots[0] if roots else Path("models")) / model.folder
    get = command(f"models get {model.id}")
    way = f"Get it with {get}" if model.sha256 else f"Download it ({get} says where)"
    return CatalogError(
        f"{model.title} is needed and was not found",
        f"{way}, or put {model.filename} into {folder}. Its licence: {model.licence}.",
    )


def verify(model: ModelFile, path: Path, progress: Progress | None = None) -> None:
    """Check size, then SHA-256, of ``path``.

    Raises:
        CatalogError: missing, different, or nothing is known to compare with.
    """
    if model.sha256 is None:
        raise CatalogError(f"no checksum is known for {model.filename}, so {path} cannot be verified")
    if not path.is_file():
        raise CatalogError(f"{path} is not there", f"Get it with {command(f'models get {model.id}')}.")
    hint = "Delete or rename it and get it again."
    if (size := path.stat().st_size) != model.size:
        raise CatalogError(f"{path} has {size:,} bytes, {model.id} has {model.size:,}", hint)
    if (digest := sha256_of(path, progress)) != model.sha256:
        raise CatalogError(f"{path} has the SHA-256 {digest}, {model.id} has {model.sha256}", hint)


def identify(path: Path, progress: Progress | None = None) -> ModelFile | None:
    """The known model a file is, whatever its name; None if its size and SHA-256 are no model's."""
    size = path.stat().st_size
    if not (candidates := [model for model in load() if model.size == size]):
        return None
    digest = sha256_of(path, progress)
    same = [model for model in candidates if model.sha256 == digest]
    # One network lies in two InsightFace packs under two names: prefer the name at hand.
    return next((model for model in same if model.filename == path.name), next(iter(same), None))


def fetch(
    model: ModelFile,
    root: Path,
    *,
    opener: urllib.request.OpenerDirector | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download into ``root/folder/filename`` unless a valid copy is in ``root``; returns its path.

    Interruption, resuming and checks are `download.download`'s.

    Raises:
        CatalogError: no checksum known, part of this repository, a different file of that name
            is there, or anything `download` raises.
    """
    target = model.path_in(root)
    if model.sha256 is None or model.size is None:
        raise CatalogError(
            f"no checksum is known for {model.filename}, so it is not downloaded",
            f"Download it yourself from {model.url} (see {model.page}) and put it into {target.parent}",
        )
    if (found := locate(model, [root])) is not None:
        verify(model, found)
        return found
    if model.shipped:
        raise CatalogError(
            f"{model.filename} is part of the dp_adapter repository and is missing from {target.parent}",
            f"Restore it from there: git checkout -- models/{model.filename}",
        )
    download(model.url, target, size=model.size, sha256=model.sha256, page=model.page, opener=opener, progress=progress)
    return target


def _names(models: Sequence[ModelFile]) -> str:
    return ", ".join(dict.fromkeys(model.id for model in models))
