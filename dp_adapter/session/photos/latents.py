"""Latents of StyleGAN2 in place of photos, for W+ adapters: no encoder for photos (e4e) comes with this extension."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dp_adapter.cache import Cache
from dp_adapter.errors import SettingsError, WeightsError
from dp_adapter.identity.faces.face_quality import GOOD_PX, SHARP, Quality
from dp_adapter.session.explanation import Photo
from dp_adapter.user_files import is_file, list_folder
from dp_adapter.weights.files import file_digest
from dp_adapter.weights.w_plus_latents import SUFFIXES, read_latent

LATENT = "latent:"
FOLDER = "dp_adapter/latents"
_NAME = re.compile(r"\w[\w .\-]{0,99}")
_FLAWLESS = Quality(GOOD_PX, SHARP, 0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Latent:
    """One latent of a person.

    Attributes:
        field: of the request that names it; number: in the request's list.
        values: [1, 18, 512].
    """

    field: str
    digest: str
    weight: float
    values: Tensor
    number: int = 0

    @property
    def quality(self) -> Quality:
        """No face can be measured in it: as good as any."""
        return _FLAWLESS

    def describe(self, agreement: float | None) -> Photo:
        return Photo(self.digest[:16], 0, None, None, None, (), agreement, number=self.number)


class Latents:
    """Files under ``<root>/dp_adapter/latents``.

    Args:
        roots: model folders, searched in order.
        paths_allowed: whether a request may name files elsewhere.
    """

    def __init__(self, roots: Sequence[Path], paths_allowed: bool, limit: int = 64) -> None:
        self._folders = tuple(root / FOLDER for root in roots)
        self._paths_allowed = paths_allowed
        self._kept: Cache[Tensor] = Cache(limit)

    def forget(self) -> None:
        self._kept.clear()

    def load(self, source: str, field: str, weight: float) -> Latent:
        """The latent that ``latent:NAME`` in a field of the request names, with or without its ending.

        Raises:
            SettingsError: there is none, or it is no latent; names the field.
        """
        path = self._path(source.removeprefix(LATENT), field)
        try:
            digest = file_digest(path)
            values = self._kept.get(digest, lambda: read_latent(path))
        except WeightsError as error:
            raise SettingsError(field, error.problem, error.hint) from error
        return Latent(field, digest, weight, values)

    def _path(self, name: str, field: str) -> Path:
        files = self._files()
        if _NAME.fullmatch(name) and (found := files.get(name) or _unique_match(name, files)) is not None:
            return found
        if self._paths_allowed and (path := _file(name)) is not None:
            return path
        where = " or ".join(map(str, self._folders)) or "a models folder"
        near = difflib.get_close_matches(name, files, n=1, cutoff=0.4)
        hint = f"Did you mean '{near[0]}'?" if near else f"Put it into {where}, and give the file's name."
        raise SettingsError(field, f"there is no latent '{name[:80]}'", hint)

    def _files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self._folders:
            for path in list_folder(folder):
                if path.suffix.lower() in SUFFIXES and is_file(path):
                    found.setdefault(path.name, path)
        return found


def _file(name: str) -> Path | None:
    """The file of this path; None where there is none or where no path can be like this."""
    try:
        path = Path(name).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _unique_match(stem: str, files: dict[str, Path]) -> Path | None:
    """The file of this name without its ending, where there is one such."""
    fitting = [path for path in files.values() if path.stem == stem]
    return fitting[0] if len(fitting) == 1 else None
