"""What all readers of encoders have: one encoder, of photos that are here, out of saved identities and into them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from torch import Tensor

from dp_adapter.cache import Cache
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.saved.saved_identity import network_of
from dp_adapter.session.photos.reference_photos import Known, SeenPhoto
from dp_adapter.session.photos.saved_photos import SavedReference
from dp_adapter.session.readers.draft import Draft
from dp_adapter.weights.checkpoint import Checkpoint, Encoder

Network = TypeVar("Network")


@dataclass(frozen=True)
class EncoderNeed:
    """What a checkpoint needs of an encoder.

    Attributes:
        variant: which of the families that share the checkpoint's keys it is.
    """

    encoder: Encoder
    checkpoint: Checkpoint
    variant: str

    @property
    def width(self) -> int:
        """Of the vectors that the checkpoint takes from this encoder."""
        return self.checkpoint.features_width[self.encoder]


@dataclass(frozen=True)
class PhotoVectors:
    """What one encoder made of one photo.

    Attributes:
        encoder: its name.
        fields: by field of ``Features``, each [1, ...].
        constants: by field what is the same for all photos.
    """

    encoder: str
    fields: Mapping[str, Tensor]
    constants: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class EncoderOutput:
    """What one encoder made of all photos of a person.

    Attributes:
        encoder: its name.
        fields: by field of ``Features`` one tensor [1, ...] per photo.
        constants: by field what is the same for all photos.
        notes: in words, what a user should know of how it was made.
    """

    encoder: str
    fields: Mapping[str, list[Tensor]]
    constants: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CachedEncoders:
    """The encoders, and what they made already, by content and encoder; a tensor in ``large`` has some 12 MB."""

    pool: EncoderPool
    small: Cache[Tensor] = field(default_factory=lambda: Cache[Tensor](256))
    large: Cache[Tensor] = field(default_factory=lambda: Cache[Tensor](32))

    def forget(self) -> None:
        self.small.clear()
        self.large.clear()


class Reader(ABC, Generic[Network]):
    """One encoder, for what a checkpoint needs of it."""

    def __init__(self, encoders: CachedEncoders, need: EncoderNeed) -> None:
        self.encoders = encoders
        self.need = need

    @cached_property
    def network(self) -> Network:
        """The encoder's network, only asked for where a photo is here. Raises as `find`."""
        return self.find()

    @abstractmethod
    def find(self) -> Network:
        """The network that fits the checkpoint. Raises CatalogError where it is not here."""

    @abstractmethod
    def live(self, photo: SeenPhoto) -> PhotoVectors:
        """Encodes a photo that is here."""

    @abstractmethod
    def saved(self, photo: SavedReference) -> PhotoVectors:
        """The vectors that a saved identity has of a photo. Raises SettingsError where it was saved without them."""

    @classmethod
    @abstractmethod
    def store(cls, draft: Draft, encoders: CachedEncoders) -> None:
        """Encodes the photos of a draft with every network of this kind that is here, one network at a time."""

    def version(self) -> str:
        """Of the network's file; empty where another file is another encoder."""
        return ""

    def notes(self) -> tuple[str, ...]:
        """What a user should know of how photos that are here are encoded, in words."""
        return ()

    def read(self, photos: Sequence[Known]) -> EncoderOutput:
        """Vectors of a person's photos. Raises as `find` and `saved`."""
        here = any(isinstance(photo, SeenPhoto) for photo in photos)
        if here:
            self.network  # noqa: B018 - without it no saved vectors need to be looked for
        vectors = [self.saved(photo) if isinstance(photo, SavedReference) else self.live(photo) for photo in photos]
        pairs = list(zip(photos, vectors, strict=True))
        first = next((one for photo, one in pairs if isinstance(photo, SeenPhoto)), vectors[0])
        return EncoderOutput(
            first.encoder,
            {name: [one.fields[name] for one in vectors] for name in first.fields},
            first.constants,
            (*(self.notes() if here else ()), *self._doubts(first.encoder, pairs)),
        )

    def _doubts(self, encoder: str, pairs: Sequence[tuple[Known, PhotoVectors]]) -> list[str]:
        """A note where vectors come from more than one file of the encoder."""
        saved = [(photo, one.encoder) for photo, one in pairs if isinstance(photo, SavedReference)]
        versions = {photo.saved.encoders.get(network_of(saved[-1][1]), "") for photo, _ in saved}
        if saved and len(saved) < len(pairs):
            versions.add(self.version())
        if len(versions) < 2:
            return []
        return [
            f"The vectors of {encoder} come from different files of it. If these are different networks, save the "
            "identity again."
        ]


def face_key(photo: SeenPhoto) -> tuple[Hashable, ...]:
    """What the chosen face of a photo is cached by."""
    return photo.digest, photo.treated, photo.face.box.tobytes()
