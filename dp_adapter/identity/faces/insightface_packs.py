"""insightface's model packs: SCRFD detection and ArcFace embeddings, with insightface 0.7.3 and 2.x.

insightface downloads a pack whose folder is missing, so the folder is looked up here first and its path is
given to insightface as the pack's name, which both versions accept.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dp_adapter.errors import CatalogError, MissingDependencyError
from dp_adapter.hints import command
from dp_adapter.identity.encoders.encoder_versions import fingerprint
from dp_adapter.identity.encoders.onnx_runtime import import_onnxruntime
from dp_adapter.identity.encoders.shipped_networks import CPU
from dp_adapter.identity.faces.face import Face, Floats, norm_crop
from dp_adapter.identity.faces.multiscale_detection import CANVAS, clip_face, detect_at_scales
from dp_adapter.identity.pictures.picture_files import Picture

if TYPE_CHECKING:
    from insightface.app import FaceAnalysis, Network

DEFAULT_ROOT = Path("~/.insightface")


class InsightFace:
    """The detector of an insightface pack such as buffalo_l or antelopev2; `ArcFace` shares its networks.

    Args:
        pack: name of the folder ``<root>/models/<pack>`` that holds the .onnx files.
        roots: searched in order; ``~/.insightface`` when None.
        threshold: least score of a face, 0..1.
        tiles: search enlarged tiles when the whole picture shows no face.
        providers: onnxruntime's, in order of preference.
    """

    def __init__(
        self,
        pack: str = "buffalo_l",
        roots: Sequence[Path] | None = None,
        threshold: float = 0.5,
        tiles: bool = True,
        providers: Sequence[str] = CPU,
    ) -> None:
        self.pack = pack
        self.name = f"insightface/{pack}"
        self._roots = tuple(roots) if roots is not None else (DEFAULT_ROOT,)
        self._threshold = threshold
        self._tiles = tiles
        self._providers = tuple(providers)

    def detect(self, picture: Picture) -> list[Face]:
        """See `Detector.detect`; the embedding is left to `ArcFace`.

        Raises:
            CatalogError: the pack is missing or incomplete; nothing is downloaded.
            MissingDependencyError: insightface is not installed.
        """
        height, width = picture.shape[:2]
        # first as FaceAnalysis.get does, so that embeddings equal those the checkpoints were trained on
        found = [kept for face in self._find(picture) if (kept := clip_face(face, width, height)) is not None]
        return found or detect_at_scales(picture, self._find, self._tiles)

    @property
    def has_age_network(self) -> bool:
        """Whether the pack has a network for ages. Raises as `detect` does."""
        return "genderage" in self.app.models

    def age(self, picture: Picture, face: Face) -> int:
        """Age in years as the pack's genderage.onnx sees it, some eight years off on average.

        Raises as `detect` does, and KeyError unless ``has_age_network``.
        """
        found = _FaceRecord(face.box)
        self.app.models["genderage"].get(np.ascontiguousarray(picture[:, :, ::-1]), found)
        return min(max(found["age"], 0), 120)

    @cached_property
    def app(self) -> FaceAnalysis:
        """The pack, loaded at first use. Raises as `detect` does."""
        try:
            import_onnxruntime()
            from insightface.app import FaceAnalysis
        except (ImportError, MissingDependencyError):
            raise MissingDependencyError("insightface", "ArcFace identity", "insightface") from None
        folder = pack_folder(self.pack, self._roots)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # 0.7.3 prints what it loads; stdout is for results
                app = FaceAnalysis(
                    name=str(folder),
                    allowed_modules=["detection", "recognition", "genderage"],
                    providers=list(self._providers),
                )
                # 2.x searches at two sizes unless one is given
                app.prepare(ctx_id=0, det_thresh=self._threshold, det_size=(CANVAS, CANVAS))
        except AssertionError:
            raise CatalogError(
                f"The insightface pack in {folder} has no face detector",
                "Unpack the whole pack there; buffalo_l has det_10g.onnx, antelopev2 scrfd_10g_bnkps.onnx.",
            ) from None
        except Exception as error:  # onnxruntime's own exceptions share no base of their own
            raise CatalogError(
                f"The insightface pack in {folder} cannot be read: {str(error)[:200]}",
                "A file of it is damaged: unpack the whole pack there again.",
            ) from error
        return app

    def _find(self, canvas: Picture) -> list[Face]:
        boxes, points = self.app.det_model.detect(np.ascontiguousarray(canvas[:, :, ::-1]))
        if points is None:
            raise CatalogError(
                f"The detector of {self.pack} gives no points", "Use a detector with 'bnkps' in its name."
            )
        return [
            Face(box[:4].astype(np.float32), five.astype(np.float32), float(box[4]))
            for box, five in zip(boxes, points, strict=True)
        ]


class _FaceRecord(dict[str, int]):
    """What insightface's networks take for a face and write to: a box as attribute, results as items."""

    def __init__(self, bbox: Floats) -> None:
        super().__init__()
        self.bbox = bbox


class ArcFace:
    """ArcFace (Deng et al., CVPR 2019) of an insightface pack.

    Args:
        source: the pack.
        normed: True gives insightface's ``normed_embedding`` (length 1), False its raw ``embedding``; which one a
            checkpoint was trained on differs.
    """

    dim = 512

    def __init__(self, source: InsightFace, normed: bool = True) -> None:
        self.name = f"arcface/{source.pack}/{'normed' if normed else 'raw'}"
        self._source = source
        self._normed = normed

    @property
    def version(self) -> str:
        """Raises as `InsightFace.detect` does."""
        return fingerprint([Path(self._network.model_file)])

    @property
    def _network(self) -> Network:
        network = self._source.app.models.get("recognition")
        if network is None:
            raise CatalogError(
                f"The insightface pack {self._source.pack} has no recognition network",
                "Unpack the whole pack; buffalo_l has w600k_r50.onnx, antelopev2 glintr100.onnx.",
            )
        return network

    def embed(self, picture: Picture, face: Face) -> Floats:
        """Vector [512]. Raises as `InsightFace.detect` does."""
        network = self._network
        crop = norm_crop(picture, face.points, network.input_size[0])
        vector = np.asarray(network.get_feat(np.ascontiguousarray(crop[:, :, ::-1])), np.float32).flatten()
        return (vector / np.linalg.norm(vector)).astype(np.float32) if self._normed else vector


def pack_folder(pack: str, roots: Sequence[Path]) -> Path:
    """The folder with the pack's .onnx files, one level deeper where the archive was unpacked into a second folder.

    Each root is searched for ``models/<pack>``, where insightface looks, and for ``<pack>``.

    Raises:
        CatalogError: in none of the roots.
    """
    places = [root.expanduser().resolve() for root in roots]
    folders = [folder for place in places for folder in (place / "models" / pack, place / pack)]
    for folder in folders:
        for candidate in (folder, folder / pack):
            if any(candidate.glob("*.onnx")):
                return candidate
    present = [folder for folder in folders if folder.is_dir()]
    raise CatalogError(
        f"The insightface pack '{pack}' "
        + (f"has no .onnx file in {present[0]}" if present else f"is in none of: {', '.join(map(str, places))}"),
        f"Get it with {command(f'models get {pack}')}, or unpack {pack}.zip of insightface's releases so that "
        f"{folders[0]} holds the .onnx files. Its licence: non-commercial research only.",
    )
