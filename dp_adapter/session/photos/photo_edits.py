"""What a mode or the user wants done to the photos before they are encoded: retouched, and their face restored."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dp_adapter import naming
from dp_adapter.cache import Cache
from dp_adapter.errors import SettingsError
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.identity.pictures.retouch_old_photo import find_damage, retouch
from dp_adapter.session.photos.reference_photos import Known, SeenPhoto

Restorer = Callable[[Picture], Picture]
_HELD = 50 * 10**6  # bytes: two photos of 8 megapixels, or one larger one
Restorers = Callable[[], Mapping[str, tuple[Restorer, bool]]]
"""The host's face restorers by name, asked for when one is needed; False beside one whose model would be downloaded."""


def no_restorers() -> Mapping[str, tuple[Restorer, bool]]:
    return {}


class PhotoEdits:
    """Retouches and restores the photos of one session.

    Args:
        restorers: the host's face restorers.
        limit: photos of which it is remembered what was done to them.
        held: bytes of edited photos that are kept; one that is not there any more is edited again.
    """

    def __init__(self, restorers: Restorers = no_restorers, limit: int = 64, held: int = _HELD) -> None:
        self._restorers = restorers
        self._treated: Cache[str] = Cache(limit)
        self._pictures: Cache[Picture] = Cache(limit, held)

    def forget(self) -> None:
        self._treated.clear()
        self._pictures.clear()

    def apply(self, photos: Sequence[Known], retouching: str, restorer: str) -> tuple[list[Known], list[str]]:
        """The photos as a resolved request wants them, and notes on what was done.

        Args:
            retouching, restorer: as ``Settings.retouch`` and ``Settings.restorer`` say.

        Raises:
            SettingsError: the restorer that was asked for is not here.
        """
        if retouching == "off" and restorer == "off":
            return list(photos), []
        name, restore = self._find_restorer(restorer)
        made: list[Known] = []
        notes: list[str] = []
        for one in photos:
            if isinstance(one, SeenPhoto):
                key = (one.digest, one.face.box.tobytes(), retouching, restorer, name)
                new = self._edit(one, key, lambda one=one: _edit(one, retouching, restorer == "auto", name, restore))
                made.append(new)
                notes += [f"{naming.capitalise(naming.photo(one.number))}: {new.treated}."] if new.treated else []
            else:
                made.append(one)
                notes.append(f"The saved identity '{one.saved.name}' has no photos that could be retouched.")
        return made, list(dict.fromkeys(notes))

    def _edit(self, one: SeenPhoto, key: Hashable, edit: Callable[[], tuple[Picture, str]]) -> SeenPhoto:
        def keep() -> str:
            picture, treated = edit()
            if treated:
                self._pictures.get(key, lambda: picture, size_of)
            return treated

        treated = self._treated.get(key, keep)
        if not treated:
            return one
        return replace(one, open=lambda: self._pictures.get(key, lambda: edit()[0], size_of), treated=treated)

    def _find_restorer(self, asked: str) -> tuple[str, Restorer | None]:
        if asked == "off":
            return "", None
        here = self._restorers()
        if asked == "auto":
            return next(((name, one) for name, (one, ready) in here.items() if ready), ("", None))
        if asked not in here:
            problem = f"'{asked}' is not here: it comes with the WebUIs"
            raise SettingsError("restorer", problem, "Use 'auto' or 'off'.", "auto")
        return asked, here[asked][0]


def size_of(picture: Picture) -> int:
    return picture.nbytes


def _edit(one: SeenPhoto, retouching: str, old_only: bool, name: str, restore: Restorer | None) -> tuple[Picture, str]:
    """Retouched, then restored, and what was done in words; with ``old_only`` an old photo alone is restored."""
    picture = one.picture
    done: list[str] = []
    found = find_damage(picture, one.face)
    if retouching != "off" and found.repairs():
        picture = retouch(picture, one.face)
        done.append(f"{', '.join(found.repairs())} taken out")
    if restore is not None and (found.old or not old_only):
        restored = restore(picture)
        same = restored.shape == picture.shape and np.array_equal(restored, picture)
        done.append(f"{name} changed nothing, the console may say why" if same else f"restored by {name}")
        picture = np.ascontiguousarray(restored, np.uint8)
    return picture, "; ".join(done)
