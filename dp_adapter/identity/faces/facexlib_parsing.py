"""Face parsing by facexlib's networks, where a WebUI has them already: finer outlines, ears and glasses as classes.

Nothing is downloaded. facexlib parses the head; the shipped parser says what lies around it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import CatalogError
from dp_adapter.identity.faces.face import Face, Floats, similarity
from dp_adapter.identity.faces.face_parsing import FaceParser, SelfieParser
from dp_adapter.identity.faces.landmark_regions import EYE, FACE, Oval, frame, oval_mask
from dp_adapter.identity.pictures.picture_files import Picture

if TYPE_CHECKING:
    from torch import nn

FOLDERS = ("facexlib", "GFPGAN", "dp_adapter/facexlib", "dp_adapter")
SIDE = 512
# facexlib 0.3.0 utils/face_restoration_helper.py: the five points of FFHQ's crops at 512 px
CROP = np.array([[192.98, 239.95], [318.9, 240.19], [256.63, 314.02], [201.26, 371.41], [313.09, 371.15]], np.float32)
SEAM = 0.08  # width of the blend to what lies around, in sides of the crop
OWN = Oval(FACE.x, FACE.y, FACE.across * 1.15, FACE.down * 1.15)  # keeps a neighbour's face out
LIPS = ("mouth", "upper lip", "lower lip")
INNER = ("brow", "eye", "glasses", "nose", *LIPS)
CLASSES_OF: Mapping[str, tuple[str, ...]] = {
    "face": ("skin", *INNER),
    "skin": ("skin", "nose", "ear", "neck", *LIPS),
    "hair": ("hair",),
    "clothes": ("clothes", "necklace", "hat"),
    "background": ("background",),
    "neck": ("neck",),
    "ears": ("ear", "earring"),
    "glasses": ("glasses",),
    "eyes": ("eye",),
    "brows": ("brow",),
    "nose": ("nose",),
    "mouth": LIPS,
}


@dataclass(frozen=True)
class Layout:
    """One of facexlib's parsing networks.

    Args:
        network: class in ``facexlib.parsing``, and what it is made with.
        classes: in the order of the output's channels; left and right are one class.
        mean, deviation: of the input, RGB in 0..1.
    """

    network: str
    options: Mapping[str, int]
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


# Class orders: zllrunning/face-parsing.PyTorch prepropess_data.py (BiSeNet), CelebAMask-HQ face_parsing README
# (ParseNet; facexlib's own MASK_COLORMAP leaves out its 14 hat, 16 necklace, 17 neck and 18 clothes).
LAYOUTS: Mapping[str, Layout] = {
    "parsing_bisenet.pth": Layout(
        "BiSeNet",
        {"num_class": 19},
        ("background", "skin", "brow", "brow", "eye", "eye", "glasses", "ear", "ear", "earring", "nose", *LIPS,
         "neck", "necklace", "clothes", "hair", "hat"),
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
    "parsing_parsenet.pth": Layout(
        "ParseNet",
        {"in_size": SIDE, "out_size": SIDE, "parsing_ch": 19},
        ("background", "skin", "nose", "glasses", "eye", "eye", "brow", "brow", "ear", "ear", *LIPS, "hair", "hat",
         "earring", "necklace", "neck", "clothes"),
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
    ),
}  # fmt: skip


class FacexlibParser:
    """Parts of a person by facexlib's BiSeNet or ParseNet.

    Args:
        path: ``parsing_bisenet.pth`` or ``parsing_parsenet.pth``.
        around: parses what the crop of the head does not show.
    """

    def __init__(self, path: Path, around: FaceParser | None = None) -> None:
        self._path = path
        self._layout = LAYOUTS[path.name]
        self._around = around or SelfieParser()

    @property
    def name(self) -> str:
        return f"facexlib-{self._layout.network.lower()}"

    def parse(self, picture: Picture, face: Face) -> dict[str, Floats]:
        """Masks as `SelfieParser.parse` gives them; eyes behind glasses are where the points say.

        Raises:
            CatalogError: the weights are damaged or for another network.
            FaceError: the face's points coincide.
        """
        import cv2

        warp = similarity(face.points, CROP)
        crop = np.asarray(cv2.warpAffine(picture, warp, (SIDE, SIDE), flags=cv2.INTER_LINEAR), np.uint8)
        height, width = picture.shape[:2]
        inside = np.asarray(_warp_back(_seam(), warp, (width, height)), np.float32)
        own = {name: _warp_back(mask, warp, (width, height)) for name, mask in self._head(crop).items()}
        at = frame(face, (height, width))
        left, right = ((float(x), float(y)) for x, y in at.points[:2])
        eyes = np.maximum(oval_mask(at, EYE, left), oval_mask(at, EYE, right))
        own["eyes"] = np.maximum(own["eyes"], eyes * own["glasses"])
        own["face"] = own["face"] * oval_mask(at, OWN)
        rest = self._around.parse(picture, face)
        for name in ("skin", "hair", "clothes", "background"):
            own[name] = np.asarray(inside * own[name] + (1 - inside) * rest[name], np.float32)
        return {name: own[name] for name in rest}

    def most_likely(self, crop: Picture, names: Sequence[str]) -> NDArray[np.bool_]:
        """Where the likeliest class of an aligned crop [512, 512, 3] is one of these, [512, 512].

        Raises:
            CatalogError: as `parse`.
        """
        return np.isin(self._shares(crop).argmax(0), _channels(self._layout, names))

    def _head(self, crop: Picture) -> dict[str, Floats]:
        """Masks [512, 512] by part of the aligned crop [512, 512, 3]."""
        shares = self._shares(crop)
        sums = {part: shares[_channels(self._layout, names)].sum(0) for part, names in CLASSES_OF.items()}
        return {part: np.asarray(share, np.float32).clip(0, 1) for part, share in sums.items()}

    def _shares(self, crop: Picture) -> Floats:
        """Shares [19, 512, 512] of the network's classes."""
        import torch

        layout = self._layout
        mean, deviation = np.array(layout.mean, np.float32), np.array(layout.deviation, np.float32)
        values = (crop.astype(np.float32) / 255 - mean) / deviation
        with torch.no_grad():
            logits = self._network(torch.as_tensor(np.moveaxis(values, -1, 0).copy())[None])[0]  # [1, 19, 512, 512]
        return torch.softmax(logits.float(), 1)[0].numpy()

    @cached_property
    def _network(self) -> nn.Module:
        from dp_adapter.pickles import unpickle

        module = importlib.import_module(f"facexlib.parsing.{self._layout.network.lower()}")
        network = cast("nn.Module", getattr(module, self._layout.network)(**self._layout.options))
        try:
            network.load_state_dict(cast(Any, unpickle(self._path)))
        except Exception as error:  # damaged bytes make torch raise anything
            raise CatalogError(
                f"{self._path} is damaged or no {self._layout.network} of facexlib",
                "Remove it, or restore it from facexlib's releases.",
            ) from error
        return network.eval()


def find_parser(roots: Sequence[Path]) -> FaceParser:
    """facexlib's parser when its package imports and a weight file is there, BiSeNet first; else the shipped one.

    Args:
        roots: model folders; facexlib's own folder is searched last.
    """
    found = next((path for path in _weight_files(roots) if path.is_file()), None)
    if found is None:
        return SelfieParser()
    try:
        importlib.import_module("facexlib.parsing")
    except (ImportError, RuntimeError):  # numba is missing, or torchvision was made for another torch
        return SelfieParser()
    return FacexlibParser(found)


def _weight_files(roots: Sequence[Path]) -> Iterator[Path]:
    spec = importlib.util.find_spec("facexlib")
    if spec is None:
        return
    folders = [root / folder for root in roots for folder in FOLDERS]
    folders += [Path(place) / "weights" for place in spec.submodule_search_locations or ()]
    for name in LAYOUTS:
        yield from (folder / name for folder in folders)


def _channels(layout: Layout, names: Sequence[str]) -> list[int]:
    return [channel for channel, name in enumerate(layout.classes) if name in names]


def _warp_back(mask: Floats, warp: np.ndarray[Any, np.dtype[np.float64]], size: tuple[int, int]) -> Floats:
    """A mask of the crop in the picture of `size` (width, height), 0 outside the crop."""
    import cv2

    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(mask, warp, size, flags=flags), np.float32)


def _seam() -> Floats:
    """[512, 512]: 1 inside, falling to 0 at the edges."""
    at = (np.arange(SIDE, dtype=np.float32) + 0.5) / (SIDE * SEAM)
    ramp = np.minimum(at, at[::-1]).clip(0, 1)
    return ramp[:, None] * ramp[None, :]
