"""One training picture with what is known of it, and its form in a WebDataset shard.

A sample in a shard is four files of one key: ``KEY.jpg`` or ``KEY.png`` (the picture), ``KEY.labels.png`` (one byte a
pixel), ``KEY.json`` (text and numbers for people to read) and ``KEY.npz`` (embeddings).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dp_adapter.training.damaged_files import read_arrays

VERSION = 1
_MOST_PIXELS = 2**26  # 8192 x 8192
_FARTHEST = 1e6  # px, of a face from its picture's corner
INSIGHTFACE_PACK = "buffalo_l"
"""Whose recognition network makes ``insightface``'s vectors: that of the adapters which are trained on them."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture of one person.

    Attributes:
        key: unique in the data set; no dot in it.
        person: who it is; samples of the same person share it.
        caption: a sentence about the picture.
        picture: [H, W, 3] RGB; labels: [H, W] of the selfie network (``identity.faces.face_parsing``).
        box: x0, y0, x1, y1 of the face, and points: [5, 2] its landmarks, in pixels of ``picture``.
        embeddings: of the face by encoder name (``sface`` [128], ``insightface`` [512], ``transface`` [144, 512]).
        facts: what else was measured; JSON.
    """

    key: str
    person: str
    caption: str
    picture: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    box: tuple[float, float, float, float]
    points: NDArray[np.float32]
    embeddings: Mapping[str, NDArray[np.float32]]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_record(self, lossless: bool = False) -> dict[str, Any]:
        """The files of a WebDataset record, as ``webdataset.TarWriter`` takes them: bytes by extension."""
        about = {
            "version": VERSION,
            "person": self.person,
            "caption": self.caption,
            "box": [round(float(v), 2) for v in self.box],
            "points": np.asarray(self.points, float).round(2).tolist(),
            "facts": dict(self.facts),
        }
        arrays = io.BytesIO()
        stored: dict[str, Any] = {name: value.astype(np.float16) for name, value in self.embeddings.items()}
        np.savez_compressed(arrays, **stored)
        kind, picture = (
            ("png", _encode_picture(self.picture, "PNG"))
            if lossless
            else ("jpg", _encode_picture(self.picture, "JPEG"))
        )
        return {
            "__key__": self.key,
            kind: picture,
            "labels.png": _encode_picture(self.labels, "PNG"),
            "json": json.dumps(about).encode(),
            "npz": arrays.getvalue(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sample:
        """Back from the bytes of a record.

        Raises whatever the content of a record that is not one of ours makes go wrong.
        """
        about = read_about(record["json"])
        picture = np.array(_open_picture(record["png"] if "png" in record else record["jpg"]).convert("RGB"))
        labels = np.array(_open_picture(record["labels.png"]))
        if labels.dtype != np.uint8 or labels.shape != picture.shape[:2]:
            raise ValueError("its labels are not one byte for each pixel")
        return cls(
            key=str(record["__key__"]),
            person=about["person"],
            caption=about["caption"],
            picture=picture,
            labels=labels,
            box=about["box"],
            points=about["points"],
            embeddings=read_arrays(record["npz"]),
            facts=about["facts"],
        )


def read_about(content: bytes) -> dict[str, Any]:
    """The text and numbers of a sample, ``box`` and ``points`` as `Sample` has them.

    Raises whatever content that is not ours makes go wrong.
    """
    about = json.loads(content)
    if about["version"] > VERSION:
        raise ValueError(f"written in version {about['version']} of the format, this one reads up to {VERSION}")
    for name in ("person", "caption"):
        about[name].encode()  # raises where it is no text, or has half a character
    x0, y0, x1, y1 = (float(v) for v in about["box"])
    points = np.array(about["points"], np.float32)
    numbers = np.array([x0, y0, x1, y1, *points.flat])
    if points.shape != (5, 2) or not (x0 < x1 and y0 < y1 and np.abs(numbers).max() < _FARTHEST):
        raise ValueError("its face is nowhere")
    return {**about, "box": (x0, y0, x1, y1), "points": points, "facts": dict(about["facts"])}


def _open_picture(content: bytes) -> Image.Image:
    """A picture, not yet unpacked. Raises ValueError where it is too large."""
    picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    if picture.width * picture.height > _MOST_PIXELS:
        raise ValueError(f"a picture has {picture.width} x {picture.height} px, the limit is {_MOST_PIXELS}")
    return picture


def _encode_picture(values: NDArray[np.uint8], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()
