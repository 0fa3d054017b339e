"""The reader of TransFace, FaceChain-FACT's encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from dp_adapter.hints import command
from dp_adapter.identity.encoders import transface
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.encoders.transface import TransFace
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.session.photos.saved_photos import SavedReference
from dp_adapter.session.readers.draft import ABSENT, Draft
from dp_adapter.session.readers.reader import CachedEncoders, PhotoVectors, Reader, face_key


class TransFaceReader(Reader[TransFace]):
    """``face_patches`` [1, L, c] of the head on black."""

    def find(self) -> TransFace:
        return self.encoders.pool.transface()

    def live(self, photo: SeenPhoto) -> PhotoVectors:
        network, pool = self.network, self.encoders.pool
        key = (*face_key(photo), network.name, pool.parser.name)
        patches = self.encoders.small.get(key, lambda: _encode(pool, network, photo))
        return PhotoVectors(network.kind, {"face_patches": patches})

    def saved(self, photo: SavedReference) -> PhotoVectors:
        found = photo.view.find("transface/", "/patches", self.need.width)
        if found is None:
            raise photo.lacking("TransFace", f"Get its file ({command('models get transface-s')} says where)")
        return PhotoVectors(found[0], {"face_patches": torch.as_tensor(found[1])[None]})

    @classmethod
    def store(cls, draft: Draft, encoders: CachedEncoders) -> None:
        pool = encoders.pool
        if pool.folders.find(transface.CATALOGUE) is None:
            return
        try:
            network = pool.transface()
            for photo, vectors in draft.faces_of(pool.yunet.name):
                vectors[f"{network.kind}/patches"] = _encode(pool, network, photo)[0].numpy()
            draft.versions[network.kind] = network.version
        except ABSENT as error:
            draft.leave_out("TransFace", error)

    def version(self) -> str:
        return self.network.version


def _encode(pool: EncoderPool, network: TransFace, photo: SeenPhoto) -> Tensor:
    return network.encode(photo.picture, photo.face, pool.parser.parse(photo.picture, photo.face))
