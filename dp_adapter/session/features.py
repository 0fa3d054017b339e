"""Chosen faces → the features that a checkpoint takes, the photos of a person joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dp_adapter.cache import Cache
from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.identity.clip import ClipFeatures, ClipVision
from dp_adapter.identity.combine import Combination, agreement, combine
from dp_adapter.identity.detect import Detector
from dp_adapter.identity.embed import Encoder
from dp_adapter.identity.encoders import Encoders
from dp_adapter.identity.face import norm_crop
from dp_adapter.identity.pictures import Picture, digest
from dp_adapter.session.explain import Photo
from dp_adapter.session.photos import Seen
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint

_CROP = 224  # what CLIP takes, and what the face variants were trained on
_WHOLE_PICTURE = {"ip-adapter", "plus", "composition"}
_SAME_PERSON = 0.25  # a photo whose mean cosine to the others is lower most likely shows somebody else


@dataclass(frozen=True)
class Person:
    """One person as the checkpoint takes them, and what is told about the photos."""

    features: Features
    photos: tuple[Photo, ...]
    encoders: tuple[str, ...]
    combine: str
    notes: tuple[str, ...]


class FeatureReader:
    """Runs the encoders that a checkpoint asks for; vectors are kept by content."""

    def __init__(self, encoders: Encoders, limit: int = 256) -> None:
        self._encoders = encoders
        self._kept: Cache[Tensor] = Cache(limit)

    def forget(self) -> None:
        self._kept.clear()

    def detector(self, checkpoint: Checkpoint, variant: str) -> Detector:
        """ArcFace checkpoints were trained on insightface's own points; all others take the shipped detector."""
        if {"arcface", "arcface-raw"} & set(checkpoint.encoders):
            return self._encoders.pack(_pack(variant))
        return self._encoders.yunet

    def read(self, seen: Sequence[Seen], settings: Settings, checkpoint: Checkpoint, variant: str) -> Person:
        """Features of one person.

        Raises:
            CatalogError, MissingDependencyError: an encoder that the checkpoint needs is not here.
        """
        how = _automatic(checkpoint, seen) if settings.combine == "auto" else cast(Combination, settings.combine)
        names: list[str] = []
        face, agreements = None, [None] * len(seen)
        image_embeds = clip_hidden = zeros = None
        for need in checkpoint.encoders:
            width = checkpoint.features_width[need]
            if need == "transface":
                raise WeightsError(f"{checkpoint.title} needs the TransFace encoder, which is not supported yet")
            if need == "clip-embeds":
                tower = self._encoders.clip(projection=width)
                crops = [_crop(one, checkpoint, variant) for one in seen]
                image_embeds = _joined([self._clip(tower, crop, _embeds) for crop in crops], seen, how)
            elif need == "clip-hidden":
                tower = self._encoders.clip(hidden=width)
                crops = [_crop(one, checkpoint, variant) for one in seen]
                clip_hidden = _joined([self._clip(tower, crop, _hidden) for crop in crops], seen, how)
                zeros = self._kept.get(("zeros", tower.name), lambda tower=tower: tower.zeros().hidden.cpu())
            else:
                tower = self._face_encoder(need, variant)
                vectors = [self._embed(tower, one) for one in seen]
                face = _joined(vectors, seen, how)
                if len(seen) > 1:
                    agreements = [round(float(x), 3) for x in agreement(torch.cat(vectors).numpy())]
            names.append(tower.name)
        photos = tuple(one.described(alike) for one, alike in zip(seen, agreements, strict=True))
        doubts = tuple(
            f"Photo {photo.digest} looks like somebody else: its likeness to the other photos is {photo.agreement:.2f}."
            for photo in photos
            if photo.agreement is not None and photo.agreement < _SAME_PERSON
        )
        features = Features(face, image_embeds, clip_hidden, zeros)
        return Person(features, photos, tuple(names), how, doubts)

    def _face_encoder(self, need: str, variant: str) -> Encoder:
        if need == "sface":
            return self._encoders.sface
        return self._encoders.arcface(_pack(variant), normed=need == "arcface")

    def _embed(self, encoder: Encoder, one: Seen) -> Tensor:
        key = (one.digest, one.face.box.tobytes(), encoder.name)
        return self._kept.get(key, lambda: torch.as_tensor(encoder.embed(one.picture, one.face)).float()[None])

    def _clip(self, tower: ClipVision, crop: Picture, part: Callable[[ClipFeatures], Tensor]) -> Tensor:
        key = (digest(crop), tower.name, part.__name__)
        return self._kept.get(key, lambda: part(tower.encode(crop)).cpu().float())


def _automatic(checkpoint: Checkpoint, seen: Sequence[Seen]) -> Combination:
    """As the checkpoint was trained; a mean counts each photo by its weight where the user gave different ones."""
    unequal = len({one.weight for one in seen}) > 1
    return "weighted" if checkpoint.combine == "average" and unequal else checkpoint.combine


def _pack(variant: str) -> str:
    """InstantID was trained on antelopev2, the FaceID family on buffalo_l."""
    return "antelopev2" if variant == "instantid" else "buffalo_l"


def _embeds(features: ClipFeatures) -> Tensor:
    return features.image_embeds


def _hidden(features: ClipFeatures) -> Tensor:
    return features.hidden


def _crop(one: Seen, checkpoint: Checkpoint, variant: str) -> Picture:
    """The aligned face, or the whole photo for the variants that were trained on whole pictures."""
    if variant in _WHOLE_PICTURE or checkpoint.family in _WHOLE_PICTURE:
        return one.picture
    return norm_crop(one.picture, one.face.points, _CROP)


def _joined(values: Sequence[Tensor], seen: Sequence[Seen], how: Combination) -> Tensor:
    """Photo by photo [1, ...] -> [k, ...], k = n for ``concatenate``, else 1."""
    stacked = torch.cat(list(values))  # [n, ...]
    weights, qualities = [one.weight for one in seen], [one.quality.score for one in seen]
    flat = combine(stacked.flatten(1).numpy(), weights, how, qualities)
    return torch.as_tensor(np.ascontiguousarray(flat)).reshape(-1, *stacked.shape[1:])
