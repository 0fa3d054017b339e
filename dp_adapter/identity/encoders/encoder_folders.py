"""Where encoders lie: in the model folders, and where other extensions keep theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dp_adapter import catalog
from dp_adapter.errors import CatalogError
from dp_adapter.identity.faces.insightface_packs import DEFAULT_ROOT
from dp_adapter.user_files import is_file, list_folder

CLIP_FOLDERS = ("clip_vision", "CLIP", "image_encoder", "dp_adapter/clip_vision")
INSIGHTFACE_FOLDERS = ("insightface", "dp_adapter/insightface")
# h94/IP-Adapter and CLIP itself are kept as either; ControlNet's extension calls its .bin files .pth.
_TOWERS = frozenset({".safetensors", ".bin", ".pt", ".pth"})


class EncoderFolders:
    """The folders that one session searches, in order.

    Args:
        roots: model folders; files that are missing belong into the first.
        others: folders of other extensions with the same subfolders: sd-webui-controlnet's ``annotator/downloads``,
            Forge's ``models/ControlNetPreprocessor``.
    """

    def __init__(self, roots: Sequence[Path], others: Sequence[Path] = ()) -> None:
        self.roots = tuple(roots)
        self._others = tuple(others)

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.roots, *self._others)

    def find(self, name: str) -> Path | None:
        """The file of the catalogue's row ``name``; None where it is nowhere."""
        return catalog.locate(catalog.find(name), self.all)

    def file(self, name: str) -> Path:
        """As `find`. Raises CatalogError, saying how to get the file, where it is nowhere."""
        found = self.find(name)
        if found is None:
            raise self.missing(name)
        return found

    def missing(self, name: str) -> CatalogError:
        """The error that a file of the catalogue is missing."""
        return catalog.missing_error(catalog.find(name), self.roots)

    def towers(self) -> Iterator[Path]:
        """What may be a CLIP vision tower: weight files, and transformers folders with their config.json.

        Other extensions' own files lie loose in their folders too; of these only .safetensors are given, whose heads
        are read in no time.
        """
        for root in self.all:
            for folder in (root / name for name in CLIP_FOLDERS):
                yield from (path for path in list_folder(folder) if _may_be_tower(path))
        for folder in self._others:
            yield from (path for path in list_folder(folder) if path.suffix == ".safetensors" and is_file(path))

    def insightface(self) -> list[Path]:
        """Folders that hold packs, or a folder ``models`` with packs; insightface's own last."""
        return [*(root / name for root in self.all for name in INSIGHTFACE_FOLDERS), DEFAULT_ROOT]


def _may_be_tower(path: Path) -> bool:
    if path.is_dir():
        return (path / "config.json").is_file()
    return path.is_file() and path.suffix.lower() in _TOWERS  # no pipes and the like, which would be waited for
