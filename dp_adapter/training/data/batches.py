"""Batches from shards; the order of samples is a function of the seed, the step and the process, without any state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dp_adapter.core.regions.region_masks import grow_and_feather, on_grid
from dp_adapter.core.types import Grid
from dp_adapter.errors import TrainingError
from dp_adapter.identity.faces.face_parsing import FACE_SKIN, HAIR, OTHERS
from dp_adapter.training.config import AdapterConfig, DataConfig, EncoderName
from dp_adapter.training.data.sample import Sample
from dp_adapter.training.data.shards import Shards
from dp_adapter.whole_files import write_whole

EMBEDDING: dict[EncoderName, str] = {"sface": "sface", "arcface": "insightface", "transface": "transface"}
"""Name of an encoder's embedding in a sample."""

LATENT = 8  # pixels a cell

_HAIR_REACH = 0.8  # how far beyond the face's box hair is this person's, in sizes of the box
_CACHED = ("masks", "points", "sface", "size_and_crop")  # of an example, besides the moments
_ENCODED = 16  # pictures that the VAE encodes at a time
_BOX_REACH = 0.15  # parsing knows a chin or an ear outside of the detector's box


@dataclass(frozen=True, eq=False)
class Example:
    """What training needs of one picture.

    Attributes:
        pixels: [3, R, R] in 0..255, or None where the latents are known.
        moments: [2, 4, h, w], mean and deviation of the VAE's posterior, or None.
        masks: [2, h, w], the face, and the face with the hair, grown and feathered.
        points: [5, 2] landmarks in pixels; sface: SFace's embedding [128] of this very picture, zeros where unknown.
        size_and_crop: SDXL's conditions: height and width of the original, top and left of the crop.
    """

    pixels: Tensor | None
    moments: Tensor | None
    masks: Tensor
    caption: str
    points: Tensor
    sface: Tensor
    size_and_crop: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples with the features of their references; some have no text or no identity.

    Attributes:
        captions: empty where the text is dropped.
        mask: [B, 1, h, w]; features: of the reference [B, e] or [B, L, e], zero where the identity is dropped.
        others: the same of other people; with_identity: [B] bool, where it is not dropped.
    """

    pixels: Tensor | None
    moments: Tensor | None
    captions: list[str]
    mask: Tensor
    features: Tensor
    others: Tensor
    with_identity: Tensor
    points: Tensor
    sface: Tensor
    size_and_crop: Tensor

    def to(self, device: torch.device) -> Batch:
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.captions)


def crop_around_face(
    sample: Sample, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32], list[int]]:
    """Crops the largest square around the face: picture [side, side, 3], labels, points, the crop's top and left."""
    import cv2

    height, width = sample.picture.shape[:2]
    square = min(height, width)
    x0, y0, x1, y1 = sample.box
    left = int(np.clip(round((x0 + x1 - square) / 2), 0, width - square))
    top = int(np.clip(round((y0 + y1 - square) / 2), 0, height - square))
    picture = sample.picture[top : top + square, left : left + square]
    labels = sample.labels[top : top + square, left : left + square]
    points = (sample.points - np.array([left, top], np.float32)) * np.float32(side / square)
    if square != side:
        smooth = cv2.INTER_AREA if square > side else cv2.INTER_CUBIC
        picture = np.asarray(cv2.resize(picture, (side, side), interpolation=smooth), np.uint8)
        labels = np.asarray(cv2.resize(labels, (side, side), interpolation=cv2.INTER_NEAREST), np.uint8)
    return np.ascontiguousarray(picture), np.ascontiguousarray(labels), points, [top, left]


def draw_masks(
    labels: NDArray[np.uint8], box: tuple[float, float, float, float], grow: float, feather: float
) -> Tensor:
    """Draws the mask of a target's visually sensitive region, without and with hair: [2, H, W] in 0..1.

    Args:
        labels: [H, W] of the selfie network; box: of the face, in their pixels.
        grow, feather: in widths of the box.
    """
    width = box[2] - box[0]
    face = np.isin(labels, (FACE_SKIN, OTHERS)) & _inside_box(box, _BOX_REACH, labels.shape)
    hair = (labels == HAIR) & _inside_box(box, _HAIR_REACH, labels.shape)
    both = torch.as_tensor(np.stack([face, face | hair]).astype(np.float32))
    return grow_and_feather(both, grow * width, feather * width)


def _inside_box(box: tuple[float, float, float, float], reach: float, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """[H, W]: the box, grown on each side by a share of its size."""
    x0, y0, x1, y1 = box
    dx, dy = reach * (x1 - x0), reach * (y1 - y0)
    x, y = np.arange(shape[1])[None] + 0.5, np.arange(shape[0])[:, None] + 0.5
    return (x > x0 - dx) & (x < x1 + dx) & (y > y0 - dy) & (y < y1 + dy)


def masks_of(sample: Sample, plan: DataConfig) -> Tensor:
    """``draw_masks`` of a sample's crop: [2, R, R]."""
    _, labels, _, (top, left) = crop_around_face(sample, plan.resolution)
    scale = plan.resolution / min(sample.picture.shape[:2])
    x0, y0, x1, y1 = ((v - o) * scale for v, o in zip(sample.box, (left, top, left, top), strict=True))
    return draw_masks(labels, (x0, y0, x1, y1), plan.grow, plan.feather)


def make_example(sample: Sample, plan: DataConfig) -> Example:
    """Makes a sample's example, with its pixels."""
    side = plan.resolution
    picture, _, points, (top, left) = crop_around_face(sample, side)
    scale = side / min(sample.picture.shape[:2])
    sface = sample.embeddings.get("sface")
    return Example(
        pixels=torch.as_tensor(picture).permute(2, 0, 1).contiguous(),
        moments=None,
        masks=on_grid(masks_of(sample, plan), Grid(side // LATENT, side // LATENT), 0),
        caption=sample.caption,
        points=torch.as_tensor(points),
        sface=torch.zeros(128) if sface is None or sface.shape != (128,) else torch.as_tensor(sface),
        size_and_crop=torch.tensor(
            [*sample.picture.shape[:2], round(top * scale), round(left * scale)], dtype=torch.float32
        ),
    )


class Examples(Dataset[dict[str, Any]]):
    """The examples by position in the run, with their references and with some conditions dropped.

    Args:
        key: seed and number of the stage, so that each stage has an order of its own.
    """

    def __init__(self, shards: Shards, plan: DataConfig, adapter: AdapterConfig, key: tuple[int, ...]) -> None:
        self.shards, self.plan, self.key = shards, plan, key
        self._name = EMBEDDING[adapter.encoder]
        self.cached: dict[int, Example] = {}
        self._features: dict[int, Tensor] = {}
        self._shape: torch.Size | None = None

    def features(self, number: int) -> Tensor:
        """The embedding of a sample: [e] of length 1 as the extension feeds it, or patch features [L, e].

        Raises:
            TrainingError: the sample has none of this encoder.
        """
        if number in self._features:
            return self._features[number]
        found = self.shards.embeddings(number)
        if self._name not in found:
            has = ", ".join(sorted(found)) or "none"
            raise TrainingError(
                f"Sample {self.shards.entries[number].key} has no embedding '{self._name}' (it has {has})",
                "Choose adapter.encoder after the data, or prepare the data with that encoder.",
            )
        features = torch.as_tensor(found[self._name])
        self._shape = self._shape or features.shape
        if features.shape != self._shape:
            problem = f"'{self._name}' of sample {self.shards.entries[number].key} has the shape {list(features.shape)}"
            raise TrainingError(f"{problem}, of others {list(self._shape)}", "Prepare all shards with one encoder.")
        if features.ndim == 1:  # patch features of a large data set would fill the memory
            features = F.normalize(features, dim=0)
            self._features[number] = features
        return features

    def number_at(self, position: int) -> int:
        """Which sample stands at a position: a new permutation each time round."""
        epoch, index = divmod(position, len(self.shards))
        return int(_permutation(len(self.shards), (*self.key, epoch))[index])

    def __getitem__(self, position: int) -> dict[str, Any]:
        number = self.number_at(position)
        random = np.random.default_rng((*self.key, position))
        one = self.cached.get(number) or make_example(self.shards.sample(number), self.plan)
        draw, with_hair = random.random(), random.random() < self.plan.hair
        both, image = self.plan.drop_both, self.plan.drop_identity
        no_identity = draw < both + image
        no_text = draw < both or both + image <= draw < both + image + self.plan.drop_text
        features = self.features(self._choose_reference(number, random))
        return {
            "pixels": one.pixels,
            "moments": one.moments,
            "captions": "" if no_text else one.caption,
            "mask": one.masks[1 if with_hair else 0][None],
            "features": torch.zeros_like(features) if no_identity else features,
            "others": self.features(self._choose_other_person(number, random)),
            "with_identity": torch.tensor(not no_identity),
            "points": one.points,
            "sface": one.sface,
            "size_and_crop": one.size_and_crop,
        }

    def _choose_reference(self, number: int, random: np.random.Generator) -> int:
        """Chooses another photo of the same person, where there is one."""
        theirs = self.shards.of_person[self.shards.entries[number].person]
        own = theirs.index(number)
        other = int(random.integers(max(len(theirs) - 1, 1)))
        if len(theirs) == 1:
            return number
        return theirs[other + (other >= own)]

    def _choose_other_person(self, number: int, random: np.random.Generator) -> int:
        """Chooses a photo of another person; after 16 tries, as where there is one person only, of anybody."""
        person = self.shards.entries[number].person
        other = number
        for _ in range(16):
            other = int(random.integers(len(self.shards)))
            if self.shards.entries[other].person != person:
                break
        return other


@lru_cache(maxsize=4)
def _permutation(count: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    return np.random.default_rng(key).permutation(count)


def collate(rows: list[dict[str, Any]]) -> Batch:
    """Stacks rows of ``Examples``."""
    stacked: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        stacked[name] = torch.stack(values) if isinstance(first, Tensor) else None if first is None else values
    return Batch(**stacked)


def iterate_batches(
    examples: Examples, batch: int, first: int, count: int, process: int, processes: int, workers: int
) -> Iterator[Batch]:
    """Yields the batches ``first`` to ``first + count - 1`` of a stage for one process."""
    starts = [(number * processes + process) * batch for number in range(first, first + count)]
    loader: Any = DataLoader(
        examples,
        batch_sampler=[list(range(start, start + batch)) for start in starts],
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
    )
    yield from loader


def cache_latents(examples: Examples, encode: Callable[[Tensor], Tensor], folder: Path, digest: str) -> None:
    """Encodes every picture once, or reads the cache of an earlier run.

    Args:
        encode: pixels [n, 3, R, R] -> moments [n, 2, 4, h, w].
        folder: where ``latents-*.safetensors`` is kept; digest: of the VAE's weights.
    """
    from safetensors.torch import load_file, save_file

    shards, plan = examples.shards, examples.plan
    sha = hashlib.sha256(digest.encode())
    for path in shards.paths:
        stat = path.stat()
        sha.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    sha.update(repr((plan.resolution, plan.grow, plan.feather, _BOX_REACH, _HAIR_REACH, _CACHED)).encode())
    path = folder / f"latents-{sha.hexdigest()[:16]}.safetensors"
    if path.is_file():
        tensors = load_file(str(path))
    else:
        tensors = _encode_all(shards, plan, encode)
        with write_whole(path) as beside:
            save_file(tensors, str(beside))
    captions = [str(shards.about(number)["caption"]) for number in range(len(shards))]
    for number, caption in enumerate(captions):
        own = {name: values[number] for name, values in tensors.items()}
        examples.cached[number] = Example(pixels=None, caption=caption, **own)


def _encode_all(shards: Shards, plan: DataConfig, encode: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(shards), _ENCODED):
        some = [
            make_example(shards.sample(number), plan) for number in range(start, min(start + _ENCODED, len(shards)))
        ]
        moments = encode(torch.stack([one.pixels for one in some if one.pixels is not None])).cpu()
        found.setdefault("moments", []).append(moments)
        for name in _CACHED:
            found.setdefault(name, []).append(torch.stack([getattr(one, name) for one in some]))
    return {name: torch.cat(values).contiguous() for name, values in found.items()}
