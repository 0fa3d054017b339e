"""The reader of vision towers inside checkpoints, which see whole photos (PhotoMaker)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dp_adapter.errors import SettingsError, WeightsError
from dp_adapter.identity.encoders.clip import preprocess
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.session.photos.saved_photos import SavedReference
from dp_adapter.session.readers.draft import Draft
from dp_adapter.session.readers.faces import face_vector
from dp_adapter.session.readers.reader import CachedEncoders, PhotoVectors, Reader, face_key
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import BuiltInTower
from dp_adapter.weights.files import open_weights
from dp_adapter.weights.library import Library

_NAME = "the model's own CLIP"


class OwnTowerReader(Reader[BuiltInTower]):
    """``id_embeds`` [1, T, D]; another file is another tower."""

    def find(self) -> BuiltInTower:
        tower = self.need.checkpoint.tower
        assert tower is not None
        return tower

    def live(self, photo: SeenPhoto) -> PhotoVectors:
        tower = self.network
        key = (*face_key(photo), tower.kind)
        embeds = self.encoders.small.get(key, lambda: _encode(self.encoders, tower, photo))
        return PhotoVectors(_NAME, {"id_embeds": embeds})

    def saved(self, photo: SavedReference) -> PhotoVectors:
        kind, checkpoint = self.network.kind, self.need.checkpoint
        found = photo.view.vectors.get(f"{kind}/ids")
        if found is None:
            family, _, _ = kind.partition("/")
            others = any(name.startswith(f"{family}/") for name in photo.saved.encoders)
            lacks = "what other files of its kind saw, not this one" if others else "neither them nor what it saw"
            raise SettingsError(
                photo.field,
                f"{checkpoint.title} looks at photos itself, and the saved identity '{photo.saved.name}' keeps {lacks}",
                f"Give the photos, or save the identity again from them while {checkpoint.path.name} is among the "
                "models.",
            )
        return PhotoVectors(_NAME, {"id_embeds": torch.as_tensor(found)[None]})

    @classmethod
    def store(cls, draft: Draft, encoders: CachedEncoders) -> None:
        """As `Reader.store`; the vectors lie with the detector whose face the tower's checkpoint takes."""
        pool = encoders.pool
        for file, tower in towers_inside(draft.library, draft.notes):
            faces = draft.faces_of(pool.yunet.name if tower.pack is None else pool.pack(tower.pack).name)
            if not faces:
                draft.notes.append(f"{file} is left out: it also takes arcface/{tower.pack}.")
                continue
            for photo, vectors in faces:
                vectors[f"{tower.kind}/ids"] = _encode(encoders, tower, photo)[0].numpy()
            draft.versions[tower.kind] = tower.digest


def towers_inside(library: Library, notes: list[str]) -> Iterator[tuple[str, BuiltInTower]]:
    """Name of a file and the tower in it, one after the other; each tower once, and a note for a damaged one."""
    kinds: set[str] = set()
    for name, path in library.files().items():
        try:
            file = open_weights(path)
        except WeightsError:
            continue  # whatever else lies in these folders
        try:
            tower = formats.read_tower(file)
        except WeightsError as error:
            notes.append(f"{name} is left out: {error.problem}.")
            continue
        if tower is not None and tower.kind not in kinds:
            kinds.add(tower.kind)
            yield name, tower


def _encode(encoders: CachedEncoders, tower: BuiltInTower, photo: SeenPhoto) -> Tensor:
    """[1, T, D], with the raw face embedding where the tower takes it."""
    arcface = None if tower.pack is None else encoders.pool.arcface(tower.pack, normed=False)
    face = None if arcface is None else face_vector(encoders, arcface, photo)
    return tower.embed(torch.as_tensor(preprocess(photo.picture, tower.image_size)), face)
