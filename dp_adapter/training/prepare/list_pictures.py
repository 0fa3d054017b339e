"""Which files of a folder are pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dp_adapter.errors import PictureError

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif", ".tif", ".tiff", ".bmp", ".dib",
    ".gif", ".jp2", ".j2k", ".tga", ".ppm", ".pgm", ".pnm",
})  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """Pictures of a folder, by their paths below it with forward slashes, sorted; and the number of other files."""

    folder: Path
    names: tuple[str, ...]
    others: int

    def path(self, name: str) -> Path:
        return self.folder / name


def list_pictures(folder: Path, out: Path) -> Listing:
    """Finds the pictures of a folder and its sub-folders by their suffixes, without hidden files and ``out``.

    Raises:
        PictureError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise PictureError(f"There is no folder '{folder}'", "Check the path.")
    names: list[str] = []
    others = 0
    skipped = out.resolve()
    for walked, subfolders, files in os.walk(folder):
        here = Path(walked)
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and (here / name).resolve() != skipped]
        for file in files:
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith("."):
                names.append((here / file).relative_to(folder).as_posix())
            else:
                others += 1
    if not names:
        raise PictureError(
            f"There is no picture in '{folder}' ({others} other files)",
            f"Give a folder with files such as {', '.join(sorted(SUFFIXES)[:6])}.",
        )
    return Listing(folder, tuple(sorted(names)), others)
