"""The encoders that a checkpoint asks for: found in the model folders, loaded at first use, released together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dp_adapter.errors import CatalogError, WeightsError
from dp_adapter.identity.clip import ClipVision
from dp_adapter.identity.detect import Detector, YuNet
from dp_adapter.identity.embed import Encoder, SFace
from dp_adapter.identity.eva import EvaVision, candidates
from dp_adapter.identity.facexlib_parse import find_parser
from dp_adapter.identity.insight import DEFAULT_ROOT, ArcFace, InsightFace
from dp_adapter.identity.parse import FaceParser

CLIP_FOLDERS = ("clip_vision", "CLIP", "image_encoder")
INSIGHTFACE_FOLDERS = ("insightface", "dp_adapter/insightface")


class Encoders:
    """Networks that look at photographs, shared by all generations of a session.

    Args:
        roots: model folders, searched in order.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(roots)
        self.release()

    def release(self) -> None:
        """Lets every network go; the next use loads it again."""
        self.yunet: Detector = YuNet()
        self.sface: Encoder = SFace()
        self._parser: FaceParser | None = None
        self._packs: dict[str, InsightFace] = {}
        self._arcface: dict[tuple[str, bool], ArcFace] = {}
        self._clip: dict[Path, ClipVision] = {}
        self._eva: dict[Path, EvaVision] = {}

    @property
    def parser(self) -> FaceParser:
        """facexlib's where its package and weights are there, else the shipped one; chosen at first use."""
        if self._parser is None:
            self._parser = find_parser(self._roots)
        return self._parser

    def pack(self, name: str) -> InsightFace:
        """An insightface pack: ``buffalo_l``, ``antelopev2``; nothing is loaded yet."""
        if name not in self._packs:
            folders = [root / folder for root in self._roots for folder in INSIGHTFACE_FOLDERS]
            self._packs[name] = InsightFace(name, [*folders, DEFAULT_ROOT])
        return self._packs[name]

    def arcface(self, pack: str, normed: bool) -> ArcFace:
        if (pack, normed) not in self._arcface:
            self._arcface[pack, normed] = ArcFace(self.pack(pack), normed)
        return self._arcface[pack, normed]

    def clip(self, hidden: int | None = None, projection: int | None = None) -> ClipVision:
        """The CLIP vision tower whose hidden states or image embeddings have the asked-for width.

        Raises:
            CatalogError: none of the towers in the model folders fits; says which were seen.
        """
        seen: list[str] = []
        others: list[str] = []
        for path in self._clip_files():
            try:
                tower = self._clip.get(path) or ClipVision(path)
            except WeightsError:
                others.append(path.name)  # other models live in these folders too
                continue
            self._clip[path] = tower
            if hidden in (None, tower.shape.hidden_size) and projection in (None, tower.shape.projection_dim):
                return tower
            seen.append(f"{path.name} (hidden {tower.shape.hidden_size}, projection {tower.shape.projection_dim})")
        wanted = f"hidden width {hidden}" if hidden else f"projection width {projection}"
        raise CatalogError(
            f"No CLIP vision encoder with {wanted} was found; seen: {', '.join(seen) or 'none'}"
            + (f"; no towers or damaged: {', '.join(others)}" if others else ""),
            "Get it with 'dp-adapter models get clip-vit-h' and put it into models/clip_vision.",
        )

    def towers(self) -> Iterator[ClipVision]:
        """One CLIP vision tower of each shape, those that `clip` would give; one that was not loaded is not kept."""
        kinds: set[str] = set()
        for path in self._clip_files():
            try:
                tower = ClipVision(path)
            except WeightsError:
                continue
            if tower.kind not in kinds:
                kinds.add(tower.kind)
                kept = self._clip.get(path)
                yield kept if kept is not None and kept.loaded else tower

    def eva(self, width: int) -> EvaVision:
        """The EVA02-CLIP image tower whose hidden states have this width.

        Raises:
            CatalogError: none of the towers in the model folders fits; says which were seen.
        """
        seen: list[str] = []
        for path in candidates(self._roots):
            try:
                tower = self._eva.get(path) or EvaVision(path)
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
            "Get it with 'dp-adapter models get eva02-clip-l-336' and put it into models/clip_vision.",
        )

    def eva_towers(self) -> Iterator[EvaVision]:
        """One EVA02-CLIP image tower of each shape, as `towers` gives CLIP's."""
        kinds: set[str] = set()
        for path in candidates(self._roots):
            try:
                tower = EvaVision(path)
            except WeightsError:
                continue
            if tower.kind not in kinds:
                kinds.add(tower.kind)
                kept = self._eva.get(path)
                yield kept if kept is not None and kept.loaded else tower

    def _clip_files(self) -> list[Path]:
        folders = [root / name for root in self._roots for name in CLIP_FOLDERS]
        found = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
        return [p for p in found if p.suffix == ".safetensors" or (p / "config.json").is_file()]
