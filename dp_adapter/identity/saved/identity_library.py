"""Saved identities in the models folders, by name."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar

from dp_adapter.errors import IdentityError
from dp_adapter.identity.saved.saved_identity import IdentityHeader, SavedIdentity
from dp_adapter.identity.saved.saved_identity_file import SUFFIX, read, read_header, write
from dp_adapter.whole_files import move, write_whole

T = TypeVar("T")

FOLDER = "dp_adapter/identities"
NAME = r"\w[\w \-]{0,63}"  # as settings.field_types.NAME: what identity:NAME in a request can say
_NAME_BYTES = 200  # file systems take 255 for the whole file name
# Windows opens a device under these names, whatever their ending.
_DEVICES = re.compile(r"CON|PRN|AUX|NUL|(COM|LPT)[0-9¹²³]", re.IGNORECASE)


class IdentityLibrary:
    """Files under ``<root>/dp_adapter/identities``.

    Names that differ only in case, or in how accents are composed, are one name, as on Windows and macOS.

    Args:
        roots: model folders, searched in order; new ones are written into the first.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._folders = tuple(root / FOLDER for root in roots)

    def names(self) -> tuple[str, ...]:
        """All names in alphabetical order. Files are not opened, so one of them may turn out to be none."""
        found: dict[str, str] = {}
        for path in self._files():
            found.setdefault(_key(path.stem), _compose(path.stem))
        return tuple(sorted(found.values(), key=_key))

    def header(self, name: str) -> IdentityHeader:
        """Head and thumbnail of an identity. Raises as `load`."""
        return read_header(self._path(name))

    def load(self, name: str) -> SavedIdentity:
        """A whole identity.

        Raises:
            IdentityError: there is none of this name (names the nearest), or its file is damaged, foreign or too large.
        """
        return read(self._path(name))

    def state(self, name: str) -> Hashable:
        """Changes when the file does, for caches. Raises as `load`."""
        path = self._path(name)
        stat = _change_file(path, path.stat, "read")
        return str(path), stat.st_size, stat.st_mtime_ns

    def save(self, identity: SavedIdentity, replace: bool = False) -> SavedIdentity:
        """Writes an identity under its name, whole or not at all, and returns it as it is read back.

        Args:
            replace: whether an identity of this name may be overwritten.

        Raises:
            IdentityError: the name cannot be used or is taken, also by who was faster, or the folder cannot be written.
        """
        self.require_free(identity.name, replace)
        taken = self._find(identity.name)
        path = self._folders[0] / f"{identity.name}{SUFFIX}" if taken is None else taken
        try:
            with write_whole(path, replace=replace) as beside:
                write(identity, beside)
                beside.chmod(0o600)  # biometric data, for nobody else on a shared machine
                saved = read(beside)
        except FileExistsError as error:
            raise _taken_error(path) from error
        except OSError as error:
            raise IdentityError(
                f"'{identity.name}' cannot be saved in {path.parent} ({error.strerror or error})",
                "Make room, or allow writing there.",
            ) from error
        if not replace:
            self._require_alone(path)
        return dataclasses.replace(saved, name=_compose(path.stem), notes=identity.notes)

    def _require_alone(self, path: Path) -> None:
        """Takes a new file back where another process took the same name in another spelling meanwhile."""
        others = [other for other in self._alike(path.stem) if other.parent == path.parent and other.name != path.name]
        if others:
            _change_file(path, path.unlink, "taken back")
            raise _taken_error(others[0])

    def require_free(self, name: str, replace: bool = False) -> None:
        """Raises IdentityError where `save` would refuse this name; to be asked before photos are embedded."""
        require_usable(name)
        if not self._folders:
            raise IdentityError("There is no models folder to save identities in", "Give one.")
        if not replace and (taken := self._find(name)) is not None:
            raise _taken_error(taken)

    def rename(self, old: str, new: str) -> None:
        """Gives an identity another name.

        Raises:
            IdentityError: there is no such identity, or the new name cannot be used or is taken.
        """
        path = self._path(old)
        require_usable(new)
        taken = self._find(new)
        if taken is not None and taken != path:  # another case of the same name is free
            raise _taken_error(taken)
        target = path.with_name(f"{new}{SUFFIX}")
        try:
            _change_file(path, lambda: move(path, target, replace=taken == path), "renamed")
        except FileExistsError as error:
            raise _taken_error(target) from error

    def delete(self, name: str) -> None:
        """Removes an identity's file. Raises IdentityError where there is none or it may not be removed."""
        path = self._path(name)
        _change_file(path, path.unlink, "deleted")

    def with_photo(self, digest: str) -> str | None:
        """The first identity made with this photo; ``digest`` is its SHA-256 or the first 16 or more digits."""
        if not re.fullmatch(r"[0-9a-f]{16,64}", digest):
            return None
        for name in self.names():
            with contextlib.suppress(IdentityError):  # a damaged file must not hide the others
                if any(known.startswith(digest) for known in self.header(name).hashes):
                    return name
        return None

    def _path(self, name: str) -> Path:
        path = self._find(name)
        if path is not None:
            return path
        names = self.names()
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        listed = f"Choose one of: {', '.join(names[:10])}." if names else "Save one first."
        raise IdentityError(
            f"There is no saved identity '{name[:80]}'", f"Did you mean '{near[0]}'?" if near else listed
        )

    def _find(self, name: str) -> Path | None:
        """Files are looked up among those that are there, so that no name leads out of the folders."""
        alike = self._alike(name)
        same = [path for path in alike if _compose(path.stem) == _compose(name)]
        return next(iter(same or alike), None)

    def _alike(self, name: str) -> list[Path]:
        return [path for path in self._files() if _key(path.stem) == _key(name)]

    def _files(self) -> list[Path]:
        found: list[Path] = []
        for folder in self._folders:
            with contextlib.suppress(OSError):  # none, or one that only others may read
                entries = (path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file())
                found += sorted(path for path in entries if re.fullmatch(NAME, _compose(path.stem)))
        return found


def require_usable(name: str) -> None:
    """Raises IdentityError for a name that some file system, or the text identity:NAME, cannot take."""
    plain = _compose(name)
    if not re.fullmatch(NAME, plain) or plain != plain.rstrip() or len(plain.encode()) > _NAME_BYTES:
        raise IdentityError(
            f"'{name[:80]}' cannot be the name of a saved identity",
            "Use 1 to 64 letters, digits, spaces, hyphens or underscores, without a space at the end.",
        )
    if _DEVICES.fullmatch(plain):
        raise IdentityError(f"'{name}' is a device on Windows, not a name for a file", "Choose another name.")


def _compose(name: str) -> str:
    """macOS hands out some names with accents as characters of their own."""
    return unicodedata.normalize("NFC", name)


def _key(name: str) -> str:
    return _compose(name).casefold()


def _taken_error(path: Path) -> IdentityError:
    return IdentityError(
        f"There is already a saved identity '{_compose(path.stem)}'", "Choose another name, or replace it."
    )


def _change_file(path: Path, action: Callable[[], T], done: str) -> T:
    try:
        return action()
    except FileExistsError:
        raise
    except OSError as error:
        raise IdentityError(
            f"The saved identity '{path.stem}' cannot be {done} ({error.strerror or error})",
            "Close what uses the file, or allow writing in its folder.",
        ) from error
