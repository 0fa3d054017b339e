"""The encoders that a checkpoint asks for: found in the folders, loaded at first use, released together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from dp_adapter.errors import CatalogError, WeightsError
from dp_adapter.hints import command
from dp_adapter.identity.encoders import transface
from dp_adapter.identity.encoders.clip import ClipVision
from dp_adapter.identity.encoders.clip_file import ClipShape
from dp_adapter.identity.encoders.encoder_device import EncoderDevice
from dp_adapter.identity.encoders.encoder_folders import EncoderFolders
from dp_adapter.identity.encoders.eva import EvaVision, find_candidates
from dp_adapter.identity.encoders.shipped_networks import providers_for
from dp_adapter.identity.encoders.transface import TransFace
from dp_adapter.identity.faces.detector import Detector, YuNet
from dp_adapter.identity.faces.face_encoders import FaceEncoder, SFace
from dp_adapter.identity.faces.face_parsing import FaceParser
from dp_adapter.identity.faces.facexlib_parsing import find_parser
from dp_adapter.identity.faces.insightface_packs import ArcFace, InsightFace

_File: TypeAlias = "tuple[Path, int, int]"
# Hidden and projection widths of the towers that checkpoints were trained on, at 224 px, by the catalogue's ids.
# Other towers share one of the two (ViT-g has H's projection, L at 336 px both of L's), and would be taken silently.
TOWERS: Mapping[str, tuple[int, int]] = {
    "clip-vit-h": (1280, 1024),
    "clip-vit-bigg": (1664, 1280),
    "clip-vit-l": (1024, 768),
}
_PIXELS = 224


class EncoderPool:
    """Networks that look at photographs, shared by all generations of a session.

    Args:
        roots: model folders, searched in order.
        folders: folders in which other extensions keep encoders, searched last.
        device: where the large ones run, as torch names it.
    """

    def __init__(self, roots: Sequence[Path], folders: Sequence[Path] = (), device: str = "cpu") -> None:
        self.folders = EncoderFolders(roots, folders)
        self.placement = EncoderDevice(device)
        self.release()

    def release(self) -> None:
        """Lets every network go; the next use loads it again."""
        self.yunet: Detector = YuNet()
        self.sface: FaceEncoder = SFace()
        self._parser: FaceParser | None = None
        self._packs: dict[str, InsightFace] = {}
        self._arcface: dict[tuple[str, bool], ArcFace] = {}
        self._clip: dict[_File, ClipVision] = {}
        self._no_clip: set[_File] = set()
        self._transface: TransFace | None = None
        self._eva: dict[Path, EvaVision] = {}

    @property
    def parser(self) -> FaceParser:
        """facexlib's where its package and weights are there, else the shipped one; chosen at first use."""
        if self._parser is None:
            self._parser = find_parser(self.folders.all)
        return self._parser

    def pack(self, name: str) -> InsightFace:
        """An insightface pack: ``buffalo_l``, ``antelopev2``; nothing is loaded yet."""
        if name not in self._packs:
            self._packs[name] = InsightFace(
                name, self.folders.insightface(), providers=providers_for(self.placement.device)
            )
        return self._packs[name]

    def arcface(self, pack: str, normed: bool) -> ArcFace:
        if (pack, normed) not in self._arcface:
            self._arcface[pack, normed] = ArcFace(self.pack(pack), normed)
        return self._arcface[pack, normed]

    def transface(self) -> TransFace:
        """FaceChain-FACT's encoder.

        Raises:
            CatalogError: its file is nowhere. WeightsError: it is damaged.
        """
        if self._transface is None:
            self._transface = TransFace(self.folders.file(transface.CATALOGUE), self.placement)
        return self._transface

    def clip(self, hidden: int | None = None, projection: int | None = None) -> ClipVision:
        """The CLIP vision tower whose hidden states or image embeddings have the asked-for width.

        Raises:
            CatalogError: none of the towers in the folders fits; says which were seen, and how to get the right one.
        """
        seen: list[str] = []
        for path in self.folders.towers():
            tower = self._tower(path)
            if tower is None:
                continue
            shape = tower.shape
            fits = hidden in (None, shape.hidden_size) and projection in (None, shape.projection_dim)
            if fits and not _is_look_alike(shape):
                return tower
            pixels = f", {shape.image_size} px" if fits else ""
            seen.append(f"{path.name} (hidden {shape.hidden_size}, projection {shape.projection_dim}{pixels})")
        others = sorted(path.name for path, _, _ in self._no_clip)
        raise self._no_tower(hidden, projection, seen, others)

    def towers(self) -> Iterator[ClipVision]:
        """One CLIP vision tower of each shape, those that `clip` would give; one that was not loaded is not kept."""
        kinds: set[str] = set()
        for path in self.folders.towers():
            tower = self._tower(path)
            if tower is None or _is_look_alike(tower.shape) or tower.kind in kinds:
                continue
            kinds.add(tower.kind)
            yield tower if tower.loaded else ClipVision(path, self.placement)

    def eva(self, width: int) -> EvaVision:
        """The EVA02-CLIP image tower whose hidden states have this width.

        Raises:
            CatalogError: none of the towers in the model folders fits; says which were seen.
        """
        seen: list[str] = []
        for path in find_candidates(self.folders.all):
            try:
                tower = self._eva.get(path) or EvaVision(path, self.placement)
            except WeightsError as error:
                if "eva" in path.name.lower():  # other models live in these folders too
                    seen.append(error.problem)
                continue
            self._eva[path] = tower
            if tower.shape.width == width:
                return tower
            seen.append(f"{path.name} (hidden {tower.shape.width})")
        raise CatalogError(
            f"No EVA02-CLIP image encoder with hidden width {width} was found; seen: {', '.join(seen) or 'none'}",
            f"Get it with {command('models get eva02-clip-l-336')}, or put it into models/clip_vision.",
        )

    def eva_towers(self) -> Iterator[EvaVision]:
        """One EVA02-CLIP image tower of each shape, as `towers` gives CLIP's."""
        kinds: set[str] = set()
        for path in find_candidates(self.folders.all):
            try:
                tower = EvaVision(path, self.placement)
            except WeightsError:
                continue
            if tower.kind not in kinds:
                kinds.add(tower.kind)
                kept = self._eva.get(path)
                yield kept if kept is not None and kept.loaded else tower

    def _tower(self, path: Path) -> ClipVision | None:
        """The tower in a file, looked into once while the file stays unchanged; None where there is none in it."""
        key = _file_key(path)
        if key in self._no_clip:
            return None  # other models live in these folders too
        try:
            if key not in self._clip:
                self._clip[key] = ClipVision(path, self.placement)
        except WeightsError:
            self._no_clip.add(key)
        return self._clip.get(key)

    def _no_tower(
        self, hidden: int | None, projection: int | None, seen: Sequence[str], others: Sequence[str]
    ) -> CatalogError:
        wanted = f"hidden width {hidden}" if hidden else f"projection width {projection}"
        problem = f"No CLIP vision encoder with {wanted} was found; seen: {', '.join(seen) or 'none'}" + (
            f"; no towers or damaged: {', '.join(others)}" if others else ""
        )
        names = [
            name for name, sizes in TOWERS.items() if hidden in (None, sizes[0]) and projection in (None, sizes[1])
        ]
        error = self.folders.missing(names[0] if len(names) == 1 else "clip-vit-h")
        return CatalogError(problem, error.hint)


def _is_look_alike(shape: ClipShape) -> bool:
    """Whether a tower shares a width with one that checkpoints were trained on, without being it."""
    sizes = (shape.hidden_size, shape.projection_dim)
    alike = [known for known in TOWERS.values() if known[0] == sizes[0] or known[1] == sizes[1]]
    return bool(alike) and not (sizes in alike and shape.image_size == _PIXELS)


def _file_key(path: Path) -> _File:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns
