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

VERSION = 1
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

        Raises:
            KeyError, ValueError, OSError: the record is not one of ours.
        """
        about = json.loads(record["json"])
        if about["version"] > VERSION:
            raise ValueError(f"written in version {about['version']} of the format, this one reads up to {VERSION}")
        picture = record["png"] if "png" in record else record["jpg"]
        with np.load(io.BytesIO(record["npz"]), allow_pickle=False) as arrays:
            embeddings = {name: np.asarray(arrays[name], np.float32) for name in arrays.files}
        x0, y0, x1, y1 = (float(v) for v in about["box"])
        return cls(
            key=str(record["__key__"]),
            person=about["person"],
            caption=about["caption"],
            picture=np.array(Image.open(io.BytesIO(picture)).convert("RGB")),
            labels=np.array(Image.open(io.BytesIO(record["labels.png"]))),
            box=(x0, y0, x1, y1),
            points=np.array(about["points"], np.float32),
            embeddings=embeddings,
            facts=about["facts"],
        )


def _encode_picture(values: NDArray[np.uint8], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()
