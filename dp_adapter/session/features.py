"""Chosen faces → the features that a checkpoint takes, the photos of a person joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from dp_adapter.cache import Cache
from dp_adapter.core.types import Features
from dp_adapter.errors import SettingsError, WeightsError
from dp_adapter.identity.clip import ClipFeatures, ClipVision
from dp_adapter.identity.combine import Combination, agreement, combine
from dp_adapter.identity.detect import Detector
from dp_adapter.identity.embed import Encoder
from dp_adapter.identity.encoders import Encoders
from dp_adapter.identity.face import norm_crop
from dp_adapter.identity.pictures import Picture, digest
from dp_adapter.session.explain import Photo
from dp_adapter.session.photos import Known, Seen
from dp_adapter.session.remembered import Remembered
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint

Part = Literal["embeds", "hidden"]
Crop = Literal["face", "photo"]
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
    seen: tuple[Known, ...]


@dataclass(frozen=True)
class _Values:
    """What one encoder saw in every photo: vectors [1, ...], and zeros [1, L, W] with CLIP's hidden state."""

    name: str
    vectors: list[Tensor]
    versions: tuple[str, ...]
    zeros: Tensor | None = None

    def doubts(self) -> list[str]:
        if len(self.versions) < 2:
            return []
        return [
            f"The vectors of {self.name} come from different files of it. If these are different networks, save the "
            "identity again."
        ]


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

    def read(self, seen: Sequence[Known], settings: Settings, checkpoint: Checkpoint, variant: str) -> Person:
        """Features of one person.

        Raises:
            CatalogError, MissingDependencyError: an encoder that the checkpoint needs is not here.
            SettingsError: a saved identity lacks vectors of such an encoder.
        """
        how = _automatic(checkpoint, seen) if settings.combine == "auto" else cast(Combination, settings.combine)
        names: list[str] = []
        notes: list[str] = []
        face, agreements = None, [None] * len(seen)
        image_embeds = clip_hidden = zeros = None
        for need in checkpoint.encoders:
            if need == "transface":
                raise WeightsError(f"{checkpoint.title} needs the TransFace encoder, which is not supported yet")
            if need in ("clip-embeds", "clip-hidden"):
                crop = _crop_of(checkpoint, variant)
                part: Part = "embeds" if need == "clip-embeds" else "hidden"
                values = self._clip_values(seen, crop, part, checkpoint.features_width[need])
            else:
                values = self._face_values(seen, self._face_encoder(need, variant))
            joined = _joined(values, seen, how)
            if need == "clip-embeds":
                image_embeds = joined
            elif need == "clip-hidden":
                clip_hidden, zeros = joined, values.zeros
            else:
                face = joined
                if len(seen) > 1:
                    agreements = [round(float(x), 3) for x in agreement(torch.cat(values.vectors).numpy())]
            names.append(values.name)
            notes += values.doubts()
        photos = tuple(one.described(alike) for one, alike in zip(seen, agreements, strict=True))
        notes += [
            f"Photo {photo.digest} looks like somebody else: its likeness to the other photos is {photo.agreement:.2f}."
            for photo in photos
            if photo.agreement is not None and photo.agreement < _SAME_PERSON
        ]
        features = Features(face, image_embeds, clip_hidden, zeros)
        return Person(features, photos, tuple(names), how, tuple(notes), tuple(seen))

    def _face_values(self, seen: Sequence[Known], encoder: Encoder) -> _Values:
        kind = encoder.name.removesuffix("/normed").removesuffix("/raw")
        vectors = [
            torch.as_tensor(one.face(encoder.name))[None] if isinstance(one, Remembered) else self._embed(encoder, one)
            for one in seen
        ]
        return _Values(encoder.name, vectors, _versions(seen, kind, lambda: encoder.version))

    def _clip_values(self, seen: Sequence[Known], crop: Crop, part: Part, width: int) -> _Values:
        """``part`` of CLIP's features of every photo, the tower only asked where a photo is here."""
        tower = None
        if any(isinstance(one, Seen) for one in seen):
            tower = self._encoders.clip(**{"projection" if part == "embeds" else "hidden": width})
        name, kind, zeros = ("", "", None) if tower is None else (tower.name, tower.kind, self._zeros(tower, part))
        vectors: list[Tensor] = []
        for one in seen:
            if isinstance(one, Remembered):
                kind, vector = one.clip(crop, part, width)
                name = name or kind
                zeros = torch.as_tensor(one.zeros[kind])[None] if zeros is None else zeros
                vectors.append(torch.as_tensor(vector)[None])
            else:
                assert tower is not None
                vectors.append(self._clip(tower, one.picture if crop == "photo" else aligned(one), part))
        return _Values(name, vectors, _versions(seen, kind, lambda: tower.version if tower else ""), zeros)

    def _face_encoder(self, need: str, variant: str) -> Encoder:
        if need == "sface":
            return self._encoders.sface
        return self._encoders.arcface(_pack(variant), normed=need == "arcface")

    def _embed(self, encoder: Encoder, one: Seen) -> Tensor:
        key = (one.digest, one.treated, one.face.box.tobytes(), encoder.name)
        return self._kept.get(key, lambda: torch.as_tensor(encoder.embed(one.picture, one.face)).float()[None])

    def _clip(self, tower: ClipVision, crop: Picture, part: Part) -> Tensor:
        key = (digest(crop), tower.name, part)
        return self._kept.get(key, lambda: _part(tower.encode(crop), part).cpu().float())

    def _zeros(self, tower: ClipVision, part: Part) -> Tensor | None:
        if part == "embeds":
            return None
        return self._kept.get(("zeros", tower.name), lambda: tower.zeros().hidden.cpu().float())


def _automatic(checkpoint: Checkpoint, seen: Sequence[Known]) -> Combination:
    """As the checkpoint was trained; a mean counts each photo by its weight where the user gave different ones."""
    unequal = len({one.weight for one in seen}) > 1
    return "weighted" if checkpoint.combine == "average" and unequal else checkpoint.combine


def _pack(variant: str) -> str:
    """InstantID was trained on antelopev2, the FaceID family on buffalo_l."""
    return "antelopev2" if variant == "instantid" else "buffalo_l"


def _part(features: ClipFeatures, part: Part) -> Tensor:
    return features.image_embeds if part == "embeds" else features.hidden


def _crop_of(checkpoint: Checkpoint, variant: str) -> Crop:
    """The aligned face, or the whole photo for the variants that were trained on whole pictures."""
    return "photo" if variant in _WHOLE_PICTURE or checkpoint.family in _WHOLE_PICTURE else "face"


def aligned(one: Seen) -> Picture:
    """The chosen face as CLIP's face variants take it."""
    return norm_crop(one.picture, one.face.points, _CROP)


def _versions(seen: Sequence[Known], kind: str, live: Callable[[], str]) -> tuple[str, ...]:
    """Versions of the encoder that the vectors come from; looked up only where there can be more than one."""
    saved = {one.versions.get(kind, "") for one in seen if isinstance(one, Remembered)}
    mixed = saved and any(isinstance(one, Seen) for one in seen)
    return tuple(sorted(saved | ({live()} if mixed else set())))


def _joined(values: _Values, seen: Sequence[Known], how: Combination) -> Tensor:
    """Photo by photo [1, ...] -> [k, ...], k = n for ``concatenate``, else 1."""
    if len({vector.shape for vector in values.vectors}) > 1:
        field = next(one.field for one in seen if isinstance(one, Remembered))
        raise SettingsError(
            field, f"its vectors of {values.name} have another size than the other photos'", "Save the identity again."
        )
    stacked = torch.cat(values.vectors)  # [n, ...]
    weights, qualities = [one.weight for one in seen], [one.quality.score for one in seen]
    flat = combine(stacked.flatten(1).numpy(), weights, how, qualities)
    return torch.as_tensor(np.ascontiguousarray(flat)).reshape(-1, *stacked.shape[1:])
