"""A request's mode: read, resolved with what the photos and the scene say, and applied to the photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dp_adapter import naming
from dp_adapter.cache import Cache
from dp_adapter.errors import CatalogError, MissingDependencyError, SettingsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.identity.pictures.restore_old_photo import retouched, wear
from dp_adapter.modes import ModeFacts, Modes, ResolvedMode, needs_reference_age, resolve_mode
from dp_adapter.session.photos.latents import LATENT
from dp_adapter.session.photos.reference_photos import Known, ReferencePhotos, SeenPhoto, used
from dp_adapter.session.photos.saved_photos import IDENTITY
from dp_adapter.session.scene import Scene
from dp_adapter.settings import Settings

Restorer = Callable[[Picture], Picture]
Restorers = Callable[[], Mapping[str, tuple[Restorer, bool]]]
"""The host's face restorers by name, asked for when one is needed; False beside one whose model would be downloaded."""

_PACKS = ("buffalo_l", "antelopev2")  # both come with genderage.onnx


def no_restorers() -> Mapping[str, tuple[Restorer, bool]]:
    return {}


class PhotoEdits:
    """Modes at work for one session.

    Args:
        restorers: the host's face restorers.
        limit: treated photos that are kept.
    """

    def __init__(
        self,
        modes: Modes,
        photos: ReferencePhotos,
        encoders: EncoderPool,
        restorers: Restorers = no_restorers,
        limit: int = 8,
    ) -> None:
        self._modes = modes
        self._photos = photos
        self._encoders = encoders
        self._restorers = restorers
        self._treated: Cache[SeenPhoto] = Cache(limit)

    def forget(self) -> None:
        self._treated.clear()

    def edit(self, settings: Settings, scene: Scene) -> ResolvedMode:
        """The request's mode, resolved.

        Raises:
            SettingsError: there is no such mode.
            DPAdapterError: the photo whose age is to be estimated cannot be used.
        """
        mode = self._modes.of(settings.mode)
        age = self._age(settings) if needs_reference_age(settings, mode) else None
        return resolve_mode(settings, mode, ModeFacts(age, scene.inpaint is not None))

    def treated(self, seen: Sequence[Known], settings: Settings) -> tuple[list[Known], list[str]]:
        """The photos as a resolved request wants them, retouched and restored, and notes on what was done.

        Raises:
            SettingsError: the restorer that was asked for is not here.
        """
        if settings.retouch == "off" and settings.restorer == "off":
            return list(seen), []
        name, restorer = self._restorer(settings)
        made: list[Known] = []
        notes: list[str] = []
        for one in seen:
            if isinstance(one, SeenPhoto):
                key = (one.digest, one.face.box.tobytes(), settings.retouch, settings.restorer, name)
                new = self._treated.get(key, lambda one=one: _treat(one, settings, name, restorer))
                made.append(replace(new, weight=one.weight, number=one.number))
                notes += [f"{naming.begun(naming.photo(one.number))}: {new.treated}."] if new.treated else []
            else:
                made.append(one)
                notes.append(f"The saved identity '{one.identity}' has no photos that could be retouched.")
        return made, list(dict.fromkeys(notes))

    def _restorer(self, settings: Settings) -> tuple[str, Restorer | None]:
        if settings.restorer == "off":
            return "", None
        here = self._restorers()
        if settings.restorer == "auto":
            return next(((name, one) for name, (one, ready) in here.items() if ready), ("", None))
        if settings.restorer not in here:
            problem = f"'{settings.restorer}' is not here: it comes with the WebUIs"
            raise SettingsError("restorer", problem, "Use 'auto' or 'off'.", "auto")
        return settings.restorer, here[settings.restorer][0]

    def _age(self, settings: Settings) -> int | None:
        """Age of the first person in their first photo that is here; None where nothing can tell."""
        photos = [n for n in used(settings, 0) if not settings.references[n].image.startswith((IDENTITY, LATENT))]
        for pack in map(self._encoders.pack, _PACKS if photos else ()):
            try:
                if not pack.tells_age:
                    continue
            except (CatalogError, MissingDependencyError):
                continue
            seen = self._photos.look_at(settings, photos[0], pack, [])
            return None if seen is None else pack.age(seen.picture, seen.face)
        return None


def _treat(one: SeenPhoto, settings: Settings, name: str, restorer: Restorer | None) -> SeenPhoto:
    """Retouched, then restored; left to the program, only an old photo is restored."""
    picture = one.picture
    done: list[str] = []
    found = wear(picture, one.face)
    if settings.retouch != "off" and found.words():
        picture = retouched(picture, one.face)
        done.append(f"{', '.join(found.words())} taken out")
    if restorer is not None and (settings.restorer != "auto" or found.old):
        restored = restorer(picture)
        same = restored.shape == picture.shape and np.array_equal(restored, picture)
        done.append(f"{name} changed nothing, the console may say why" if same else f"restored by {name}")
        picture = np.ascontiguousarray(restored, np.uint8)
    return replace(one, picture=picture, treated="; ".join(done))
