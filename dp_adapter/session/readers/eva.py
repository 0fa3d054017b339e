"""The reader of EVA02-CLIP, PuLID's second encoder."""

from __future__ import annotations

import torch

from dp_adapter.hints import command
from dp_adapter.identity.crops.grey_face import grey_face
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.encoders.eva import EvaFeatures, EvaVision
from dp_adapter.identity.faces.facexlib_parsing import FacexlibParser
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.session.photos.saved_photos import SavedReference
from dp_adapter.session.readers.draft import ABSENT, Draft
from dp_adapter.session.readers.reader import CachedEncoders, PhotoVectors, Reader, face_key

OTHER_PARSER = (
    "The face for EVA02-CLIP was cut out by the shipped parser. PuLID was trained with facexlib's BiSeNet, whose "
    "package or weights (parsing_bisenet.pth) are not here."
)
DETECTOR = "insightface/antelopev2"  # PuLID's


class EvaReader(Reader[EvaVision]):
    """``eva_pooled`` [1, c] and ``eva_hidden`` [1, 5, L, w] of the grey face."""

    def find(self) -> EvaVision:
        return self.encoders.pool.eva(self.need.width)

    def live(self, photo: SeenPhoto) -> PhotoVectors:
        tower, encoders = self.network, self.encoders
        key = (*face_key(photo), tower.name, encoders.pool.parser.name)
        made: list[EvaFeatures] = []  # the tower runs once for both caches

        def encode() -> EvaFeatures:
            if not made:
                made.append(_encode(encoders.pool, tower, photo))
            return made[0]

        pooled = encoders.small.get((*key, "pooled"), lambda: encode().pooled)
        hidden = encoders.large.get((*key, "hidden"), lambda: encode().hidden)
        return PhotoVectors(tower.name, {"eva_pooled": pooled, "eva_hidden": hidden})

    def saved(self, photo: SavedReference) -> PhotoVectors:
        found = photo.view.find("eva/", "/face/hidden", self.need.width)
        pooled = None if found is None else photo.view.vectors.get(f"{found[0]}/face/pooled")
        if found is None or pooled is None:
            hint = f"Put that encoder into models/clip_vision ({command('models get eva02-clip-l-336')})"
            raise photo.lacking(f"EVA02-CLIP with hidden width {self.need.width}", hint)
        fields = {"eva_pooled": torch.as_tensor(pooled)[None], "eva_hidden": torch.as_tensor(found[1])[None]}
        return PhotoVectors(found[0], fields)

    @classmethod
    def store(cls, draft: Draft, encoders: CachedEncoders) -> None:
        faces = draft.faces_of(DETECTOR)
        for tower in encoders.pool.eva_towers() if faces else ():
            try:
                for photo, vectors in faces:
                    features = _encode(encoders.pool, tower, photo)
                    vectors[f"{tower.kind}/face/pooled"] = features.pooled[0].numpy()
                    vectors[f"{tower.kind}/face/hidden"] = features.hidden[0].numpy()
            except ABSENT as error:
                draft.leave_out(tower.kind, error)
                continue
            draft.versions[tower.kind] = tower.version
            draft.notes += _notes(encoders.pool)

    def version(self) -> str:
        return self.network.version

    def notes(self) -> tuple[str, ...]:
        return _notes(self.encoders.pool)


def _encode(pool: EncoderPool, tower: EvaVision, photo: SeenPhoto) -> EvaFeatures:
    return tower.encode(grey_face(photo.picture, photo.face, pool.parser))


def _notes(pool: EncoderPool) -> tuple[str, ...]:
    """Where the face is not cut out as PuLID was trained."""
    return () if isinstance(pool.parser, FacexlibParser) else (OTHER_PARSER,)
