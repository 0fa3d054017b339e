"""Photos that were dropped or uploaded, kept in memory under the hash of their content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.picture_files import MASK_LIMITS, Picture, load, load_picture

DIGITS = 16
T = TypeVar("T")


class DroppedPhotos:
    """Encoded pictures by hash, bounded in bytes; what was not used for longest goes first. Safe among threads.

    Args:
        max_bytes: sum of the sizes of the kept files.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def add(self, data: bytes, *, mask: bool = False) -> str:
        """Keeps a picture file and returns its hash: 16 hex digits of the SHA-256 of its decoded content.

        Args:
            mask: whether it is to be read as a mask, which may be smaller.

        Raises:
            PictureError: it is no picture, outside the limits of ``load``, or larger than all that is kept.
        """
        name = load(data, MASK_LIMITS if mask else None).digest[:DIGITS]
        if len(data) > self._max_bytes:
            raise PictureError(
                f"The picture has {len(data) / 2**20:.1f} MiB, more than the {self._max_bytes / 2**20:.1f} MiB kept "
                "for dropped photos",
                "Save it smaller or as JPEG.",
            )
        with self._lock:
            self._kept[name] = data
            self._kept.move_to_end(name)
            while sum(map(len, self._kept.values())) > self._max_bytes:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> Picture:
        """The photograph, decoded anew. Raises as ``read``."""
        return self.read(name, load_picture)

    def read(self, name: str, read: Callable[[bytes], T]) -> T:
        """What was kept, read anew.

        Args:
            read: as for ``picture_sources.read_as``.

        Raises:
            PictureError: it is not here any more.
        """
        with self._lock:
            data = self._kept.get(name)
            if data is not None:
                self._kept.move_to_end(name)
        if data is None:
            raise PictureError("The photo is not here any more", "Drop it again.")
        return read(data)

    def clear(self) -> None:
        """Lets all pictures go."""
        with self._lock:
            self._kept.clear()

    def __contains__(self, name: object) -> bool:
        return name in self._kept
