"""The reader of every encoder that looks at photos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp_adapter.session.readers.clip import ClipReader
from dp_adapter.session.readers.eva import EvaReader
from dp_adapter.session.readers.faces import FaceReader
from dp_adapter.session.readers.own_tower import OwnTowerReader
from dp_adapter.session.readers.reader import Reader
from dp_adapter.session.readers.transface import TransFaceReader
from dp_adapter.weights.checkpoint import Encoder

# In this order photos are encoded when an identity is saved.
READERS: Mapping[Encoder, type[Reader[Any]]] = {
    "arcface": FaceReader,
    "arcface-raw": FaceReader,
    "sface": FaceReader,
    "clip-embeds": ClipReader,
    "clip-hidden": ClipReader,
    "clip-person": ClipReader,
    "clip-parsed": ClipReader,
    "clip-parts": ClipReader,
    "transface": TransFaceReader,
    "eva": EvaReader,
    "pixels": OwnTowerReader,
}
