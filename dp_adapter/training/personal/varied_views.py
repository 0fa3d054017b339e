"""The pictures of personalising: head and shoulders cut out of the person's photos, varied, with masks of the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dp_adapter.errors import PictureError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.face import Face, Floats, choose
from dp_adapter.identity.faces.face_encoders import FaceEncoder
from dp_adapter.identity.faces.face_parsing import CROP, FaceParser
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.training.data.sample import INSIGHTFACE_PACK

EncoderName = Literal["sface", "arcface"]

_HEAD = ("face", "hair", "ears", "glasses")
_ZOOM = (0.85, 1.15)  # of the cut's side
_SHIFT = 0.06  # of the cut's side, to each side
_COLOUR = 0.1  # brightness, contrast and saturation go up or down by as much


@dataclass(frozen=True, eq=False)
class Subject:
    """One photo of the person.

    Attributes:
        picture: [H, W, 3]; face: in it.
        embedding: of the face [e]; head: mask [H, W] in 0..1.
    """

    picture: Picture
    face: Face
    embedding: Floats
    head: Floats


@dataclass(frozen=True, eq=False)
class VariedView:
    """A crop around the person, varied: picture [S, S, 3] and the mask of the head in it [S, S] in 0..1."""

    picture: Picture
    mask: Floats


def read_subjects(photos: Sequence[Path], encoders: EncoderPool, encoder: EncoderName) -> list[Subject]:
    """Finds, embeds and parses the largest face of each photo.

    Raises:
        PictureError: a photo cannot be read. FaceError: it shows no face.
        CatalogError, MissingDependencyError: a network is not here.
    """
    detector = encoders.yunet if encoder == "sface" else encoders.pack(INSIGHTFACE_PACK)
    network: FaceEncoder = encoders.sface if encoder == "sface" else encoders.arcface(INSIGHTFACE_PACK, normed=True)
    found: list[Subject] = []
    for path in photos:
        picture = load_picture(path)
        face = choose(detector.detect(picture))
        found.append(Subject(picture, face, network.embed(picture, face), _mask_head(encoders.parser, picture, face)))
    if not found:
        raise PictureError("No photo was given", "Give at least one photo of the person.")
    return found


def lowest_likeness(subjects: Sequence[Subject]) -> float:
    """The lowest cosine between embeddings of two photos; 1 for a single photo."""
    unit = np.stack([one.embedding / max(float(np.linalg.norm(one.embedding)), 1e-12) for one in subjects])
    return float((unit @ unit.T).min())


def mean_embedding(subjects: Sequence[Subject]) -> Floats:
    """[e]: the mean of the directions, of the photos' mean length."""
    vectors = np.stack([one.embedding for one in subjects])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    direction = (vectors / lengths).mean(0)
    return np.asarray(direction / np.linalg.norm(direction) * lengths.mean(), np.float32)


def vary(subjects: Sequence[Subject], size: int, count: int, random: np.random.Generator) -> list[VariedView]:
    """Makes ``count`` varied crops [size, size], the photos in turn; the first crop of each photo is not varied."""
    found: list[VariedView] = []
    for number in range(count):
        subject = subjects[number % len(subjects)]
        left, top, side = _choose_square(subject, None if number < len(subjects) else random)
        here = slice(top, top + side), slice(left, left + side)
        picture = np.asarray(_resize(subject.picture[here], size), np.uint8)
        mask = np.asarray(_resize(subject.head[here], size), np.float32)
        if number >= len(subjects):
            picture = _vary_colour(picture, random)
            if random.random() < 0.5:
                picture, mask = picture[:, ::-1], mask[:, ::-1]
        found.append(VariedView(np.ascontiguousarray(picture), np.ascontiguousarray(mask)))
    return found


def _mask_head(parser: FaceParser, picture: Picture, face: Face) -> Floats:
    """The mask of the head [H, W]; the parser marks everybody's hair, so only hair around this face counts."""
    parts = parser.parse(picture, face)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    near = np.hypot(x - face.centre[0], y - face.centre[1]) < CROP / 2 * face.size
    return np.asarray(np.max([parts[name] for name in _HEAD], axis=0) * near, np.float32)


def _choose_square(subject: Subject, random: np.random.Generator | None) -> tuple[int, int, int]:
    """Left, top and side in px of a square inside the photo, around the face."""
    height, width = subject.picture.shape[:2]
    zoom = 1.0 if random is None else random.uniform(*_ZOOM)
    side = max(8, min(height, width, round(CROP * subject.face.size * zoom)))
    moved = np.zeros(2) if random is None else random.uniform(-_SHIFT, _SHIFT, 2) * side
    left, top = (int(value) for value in np.round(subject.face.centre - side / 2 + moved))
    return min(max(0, left), width - side), min(max(0, top), height - side), side


def _resize(square: Picture | Floats, size: int) -> Any:
    """[s, s, ...] -> [size, size, ...]; linear where it grows, so that a mask stays in 0..1."""
    import cv2

    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if len(square) > size else cv2.INTER_LINEAR)


def _vary_colour(picture: Picture, random: np.random.Generator) -> Picture:
    bright, contrast, saturation = random.uniform(1 - _COLOUR, 1 + _COLOUR, 3)
    values = picture.astype(np.float32)
    grey = values @ np.array([0.299, 0.587, 0.114], np.float32)
    values = grey[..., None] + saturation * (values - grey[..., None])
    mean = values.mean()
    return ((mean + contrast * (values - mean)) * bright).clip(0, 255).round().astype(np.uint8)
