"""Pasted parameters → the panel's widgets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dp_adapter.webui.panel.messages import status_html
from dp_adapter.webui.panel.widget_values import values_of
from dp_adapter.webui.parameters import infotext, infotext_photos

NOTE = "note"  # name of the component that shows what could not be restored, as HTML


class PictureStores(Protocol):
    """The session, as far as pictures are found in it."""

    @property
    def dropped_photos(self) -> infotext_photos.PhotoStore: ...

    @property
    def identities(self) -> infotext_photos.IdentityStore: ...


class Paster:
    """Reads a picture's parameters once for all widgets.

    Args:
        session: where photos and saved identities are; asked for only when parameters name one.
        wanted: whether pasting may touch the panel at all.
        warn: shows what could not be restored.
    """

    def __init__(
        self, session: Callable[[], PictureStores], wanted: Callable[[], bool], warn: Callable[[str], None]
    ) -> None:
        self._session = session
        self._wanted = wanted
        self._warn = warn
        self._last: tuple[Mapping[str, Any], dict[str, object]] | None = None

    def fields(self, components: Mapping[str, Any]) -> list[tuple[Any, Restore]]:
        """What ``Script.infotext_fields`` takes.

        Args:
            components: of the panel by name, as ``widget_values.ARGS`` names them, and ``NOTE``.
        """
        return [(component, Restore(name, self)) for name, component in components.items() if name != "request"]

    def values(self, params: Mapping[str, Any]) -> dict[str, object]:
        """Widget values by name; those that are not in it stay as they are.

        Parameters without DP-Adapter only disable it.
        """
        # The hosts ask for one widget after the other with one and the same mapping.
        if self._last is None or self._last[0] is not params:
            self._last = (params, self._read(params) if self._wanted() else {})
        return self._last[1]

    def _read(self, params: Mapping[str, Any]) -> dict[str, object]:
        pasted = infotext.read_parameters(params)
        if pasted is None:
            return {"enabled": False, NOTE: ""}
        notes, settings = pasted.notes, pasted.settings
        if settings is not None and (settings.references or settings.regions or settings.face.like):
            session = self._session()
            settings, more = infotext_photos.find_pictures(
                settings, pasted.names, session.dropped_photos, session.identities
            )
            notes = (*notes, *more)
        if notes:
            self._warn(" ".join(notes))
        note: dict[str, object] = {NOTE: status_html(notes, "warning")}
        return note if settings is None else note | _add_file_names(values_of(settings), pasted.names)


def _add_file_names(values: dict[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """The list of photos with their file names, which the panel shows."""
    photos: list[dict[str, Any]] = json.loads(str(values["photos"] or "[]"))
    for photo in photos:
        name = names.get(str(photo["image"]).removeprefix(infotext_photos.PHOTO))
        if name:
            photo["name"] = name
    return {**values, "photos": json.dumps(photos, ensure_ascii=False) if photos else ""}


@dataclass(frozen=True)
class Restore:
    """One widget's value from pasted parameters; None leaves it alone.

    Equal in both tabs, so that as ``Script.paste_field_names`` it makes "Send to img2img" carry the panel over.
    """

    name: str
    paster: Paster = field(compare=False, repr=False)

    def __call__(self, params: Mapping[str, Any]) -> object:
        return self.paster.values(params).get(self.name)
