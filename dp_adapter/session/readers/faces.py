"""The reader of face encoders: ArcFace and the shipped SFace."""

from __future__ import annotations

import torch
from torch import Tensor

from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.detector import Detector
from dp_adapter.identity.faces.face_encoders import FaceEncoder
from dp_adapter.identity.saved.saved_identity import network_of
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.session.photos.saved_photos import SavedReference
from dp_adapter.session.readers.draft import Draft
from dp_adapter.session.readers.reader import CachedEncoders, PhotoVectors, Reader, face_key
from dp_adapter.weights.checkpoint import Checkpoint

_PACK = "insightface/"


class FaceReader(Reader[FaceEncoder]):
    """``faceid`` [1, e]: ArcFace as the checkpoint wants it, or SFace."""

    def find(self) -> FaceEncoder:
        need, pool = self.need, self.encoders.pool
        if need.encoder == "sface":
            return pool.sface
        return pool.arcface(pack_of(need.checkpoint, need.variant), normed=need.encoder == "arcface")

    def live(self, photo: SeenPhoto) -> PhotoVectors:
        return PhotoVectors(self.network.name, {"faceid": face_vector(self.encoders, self.network, photo)})

    def saved(self, photo: SavedReference) -> PhotoVectors:
        vector = photo.face(self.network.name)  # ArcFace's pack is not opened for its name
        return PhotoVectors(self.network.name, {"faceid": torch.as_tensor(vector)[None]})

    @classmethod
    def store(cls, draft: Draft, encoders: CachedEncoders) -> None:
        for detector, photo, vectors in draft.faces():
            encoder = encoder_for(encoders.pool, detector)
            vectors[encoder.name] = encoder.embed(photo.picture, photo.face)
            draft.versions[network_of(encoder.name)] = encoder.version

    def version(self) -> str:
        return self.network.version


def pack_of(checkpoint: Checkpoint, variant: str) -> str:
    """The insightface pack whose networks a checkpoint was trained on."""
    return checkpoint.variant(variant).pack


def detector_for(pool: EncoderPool, checkpoint: Checkpoint, variant: str) -> Detector:
    """ArcFace checkpoints were trained on insightface's own points; all others take the shipped detector."""
    if {"arcface", "arcface-raw"} & set(checkpoint.encoders):
        return pool.pack(pack_of(checkpoint, variant))
    return pool.yunet


def encoder_for(pool: EncoderPool, detector: str) -> FaceEncoder:
    """The face encoder that is run on a detector's points, ArcFace raw."""
    return pool.arcface(detector[len(_PACK) :], normed=False) if detector.startswith(_PACK) else pool.sface


def face_vector(encoders: CachedEncoders, encoder: FaceEncoder, photo: SeenPhoto) -> Tensor:
    """[1, e] of the chosen face, from the cache where it is there."""
    key = (*face_key(photo), encoder.name)
    return encoders.small.get(key, lambda: torch.as_tensor(encoder.embed(photo.picture, photo.face)).float()[None])
