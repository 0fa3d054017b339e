"""The options of ``prepare``, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from dp_adapter.errors import SettingsError

Crop = Literal["whole", "head"]
Several = Literal["drop", "largest", "each"]
People = Literal["faces", "folders", "table"]
ENCODERS = ("sface", "insightface", "transface")


@dataclass(frozen=True)
class PrepareOptions:
    """Everything that decides the result besides the pictures and their captions.

    Attributes:
        size: short side of a stored picture in px, the resolution of training; smaller pictures are not enlarged.
        crop: the ``whole`` picture, or ``head`` and shoulders.
        several: what becomes of a picture of several faces: ``drop`` it, keep the ``largest``, a sample for ``each``.
        people: who is in a picture: told apart by their ``faces``, by sub-``folders``, or by a column of the ``table``.
        same: least mean cosine of SFace vectors between two groups of faces that are one person.
        min_photos: a person with fewer is dropped.
        min_face: side of the face in px of the original (see `identity.faces.face_quality`).
        min_sharpness: variance of the Laplacian of the aligned face.
        max_yaw, max_pitch: degrees either way.
        min_score: of the detector, 0..1; also what counts as a face of several.
        near_bits, near_cosine: two pictures are one when at most so many of 64 bits of their perceptual hashes differ
            and their faces have at least this cosine.
        encoders: embeddings that are stored; ``sface`` is always among them.
        shard_mb: a shard is closed before it grows over so many MiB.
        lossless: PNG instead of JPEG at quality 95.
    """

    size: int = 512
    crop: Crop = "whole"
    several: Several = "drop"
    people: People = "faces"
    same: float = 0.48
    min_photos: int = 1
    min_face: float = 64.0
    min_sharpness: float = 60.0
    max_yaw: float = 45.0
    max_pitch: float = 45.0
    min_score: float = 0.7
    near_bits: int = 9
    near_cosine: float = 0.85
    encoders: tuple[str, ...] = ("sface",)
    shard_mb: float = 256.0
    lossless: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsError(name, f"{value} is not from {low} to {high}")
        for name, choices in (("crop", Crop), ("several", Several), ("people", People)):
            if getattr(self, name) not in get_args(choices):
                raise SettingsError(name, f"'{getattr(self, name)}' is none of {', '.join(get_args(choices))}")
        if unknown := set(self.encoders) - set(ENCODERS):
            raise SettingsError("encoders", f"'{sorted(unknown)[0]}' is none of {', '.join(ENCODERS)}")
        if self.several == "each" and self.people != "faces":
            raise SettingsError(
                "several",
                f"a {self.people.removesuffix('s')} names one person, 'each' makes a sample of everyone in a picture",
                "Choose several=largest, or people=faces.",
            )

    def to_json(self) -> dict[str, Any]:
        """The options as the manifest has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"encoders": [name for name in ENCODERS if name in {"sface", *self.encoders}]}


_RANGES: dict[str, tuple[float, float]] = {
    "size": (64, 4096),
    "same": (0.0, 1.0),
    "min_photos": (1, 1_000_000),
    "min_face": (8, 4096),
    "min_sharpness": (0, 1e6),
    "max_yaw": (0, 180),
    "max_pitch": (0, 180),
    "min_score": (0.6, 1.0),  # the detector itself leaves out what is below
    "near_bits": (0, 64),
    "near_cosine": (0.0, 1.01),
    "shard_mb": (0.01, 1 << 20),
}
