"""The pictures of a request: kept under their hash before they are written, found again after they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from dp_adapter import naming
from dp_adapter.settings import FieldInfo, ListOf, Nullable, Picture, Record, RecordOf, Reference, Settings, field_at
from dp_adapter.settings.fields import fields_of

PHOTO, IDENTITY, LATENT = "photo:", "identity:", "latent:"


class PhotoStore(Protocol):
    """Where dropped photos lie."""

    def __contains__(self, digest: str, /) -> bool: ...


class IdentityStore(Protocol):
    """Saved identities."""

    def with_photo(self, digest: str, /) -> str | None:
        """The name of one that was made with the photo of this hash."""
        ...


def keep_pictures(settings: Settings, keep: Callable[[str, str], str]) -> Settings:
    """The request with every picture in it replaced by ``photo:HASH``.

    Args:
        keep: keeps a picture and returns its hash, given its text and its field's path.
    """
    raw = {path: text for path, text in _pictures(settings) if not text.startswith((PHOTO, IDENTITY, LATENT))}
    return settings.with_fields({path: PHOTO + keep(text, path) for path, text in raw.items()})


def find_pictures(
    settings: Settings, names: Mapping[str, str], dropped: PhotoStore, identities: IdentityStore
) -> tuple[Settings, tuple[str, ...]]:
    """The request with photos that are no longer here replaced by saved identities made with them, and what to tell.

    Args:
        names: file names by hash.
    """
    changes: dict[str, str] = {}
    notes: dict[str, None] = {}
    for path, text in _pictures(settings):
        digest = text.removeprefix(PHOTO)
        if not text.startswith(PHOTO) or digest in dropped:
            continue
        kind = field_at(path).kind
        saved = identities.with_photo(digest) if isinstance(kind, Picture) and kind.saved else None
        title = _picture_title(path) + (f" ('{names[digest]}')" if digest in names else "")
        if saved is None:
            notes[f"{title} is not here any more: drop it again."] = None
        else:
            changes[path] = IDENTITY + saved
            notes[f"{title} is part of the saved identity '{saved}', which is used."] = None
    return _drop_duplicates(settings.with_fields(changes)) if changes else settings, tuple(notes)


def _picture_title(path: str) -> str:
    """Which picture of a request is meant, as a sentence begins."""
    item = re.match(r"(\w+)\[(\d+)\]\.(\w+)", path)
    if item is None:
        return f"The picture of '{field_at(path).label}'"
    if item[1] == "regions":
        return f"The mask of {naming.region(int(item[2]))}"
    photo = naming.photo(int(item[2]))
    return naming.capitalise(photo) if item[3] == "image" else f"The picture of '{field_at(path).label}' for {photo}"


def _drop_duplicates(settings: Settings) -> Settings:
    """Several photos of one person may lead to the same saved identity, which counts once."""
    left: dict[object, Reference] = {}
    for number, reference in enumerate(settings.references):
        saved = reference.image.startswith(IDENTITY)
        left.setdefault((reference.image, reference.identity) if saved else number, reference)
    return replace(settings, references=tuple(left.values()))


def _pictures(settings: Settings) -> Iterator[tuple[str, str]]:
    """The text of every picture, with its path."""
    return ((path, value) for path, info, value, _ in walk_values(settings) if isinstance(info.kind, Picture) and value)


def walk_values(record: Record, path: str = "", optional: bool = False) -> Iterator[tuple[str, FieldInfo, Any, bool]]:
    """Path, field and value of all that a request holds; and whether it has to show that its record is there at all.

    Args:
        optional: whether the record need not be there.
    """
    for number, info in enumerate(fields_of(type(record))):
        value = getattr(record, info.name)
        here = f"{path}.{info.name}" if path else info.name
        if isinstance(value, Record):
            yield from walk_values(value, here, optional=isinstance(info.kind, Nullable))
        elif isinstance(info.kind, ListOf) and isinstance(info.kind.item, RecordOf):
            for index, item in enumerate(value):
                yield from walk_values(item, f"{here}[{index}]", optional=True)
        else:
            yield here, info, value, optional and number == 0
