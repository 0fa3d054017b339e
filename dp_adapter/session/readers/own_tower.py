"""What a vision tower inside a checkpoint sees in whole photos (PhotoMaker)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dp_adapter.errors import WeightsError
from dp_adapter.identity.encoders.clip import preprocess
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.session.photos.saved_photos import Remembered
from dp_adapter.session.readers.clip import Ask, Reading, Values, face_vector
from dp_adapter.weights.checkpoint import OwnTower
from dp_adapter.weights.families import photomaker
from dp_adapter.weights.files import open_weights
from dp_adapter.weights.key_aliases import canonical
from dp_adapter.weights.library import Library


def read_pixels(reading: Reading, ask: Ask) -> Values:
    """``id_embeds`` [1, T, D] of the tower; a photo of a saved identity brings them along."""
    tower = ask.checkpoint.tower
    assert tower is not None
    vectors = [
        torch.as_tensor(one.id_embeds(tower.kind, ask.checkpoint.title, ask.checkpoint.path.name))[None]
        if isinstance(one, Remembered)
        else _kept(reading, tower, one)
        for one in ask.seen
    ]
    return Values("the model's own CLIP", {"id_embeds": vectors})


def id_embeds(tower: OwnTower, one: SeenPhoto, face: Tensor | None) -> Tensor:
    """[1, T, D] of a photo, with the raw face embedding [1, e] where the tower takes it."""
    return tower.embed(torch.as_tensor(preprocess(one.picture, tower.image_size)), face)


def towers_inside(library: Library, notes: list[str]) -> Iterator[tuple[str, OwnTower]]:
    """Name of a file and the tower in it, one after the other; each tower once, and a note for a damaged one."""
    kinds: set[str] = set()
    for name, path in library.files().items():
        try:
            file = canonical(open_weights(path))
        except WeightsError:
            continue  # whatever else lies in these folders
        if not photomaker.recognise(file):
            continue
        try:
            tower = photomaker.read_tower(file)
        except WeightsError as error:
            notes.append(f"{name} is left out: {error.problem}.")
            continue
        if tower.kind not in kinds:
            kinds.add(tower.kind)
            yield name, tower


def _kept(reading: Reading, tower: OwnTower, one: SeenPhoto) -> Tensor:
    def seen() -> Tensor:
        encoder = None if tower.pack is None else reading.encoders.arcface(tower.pack, normed=False)
        return id_embeds(tower, one, None if encoder is None else face_vector(reading, encoder, one))

    return reading.kept.get((one.digest, one.treated, one.face.box.tobytes(), tower.kind), seen)
