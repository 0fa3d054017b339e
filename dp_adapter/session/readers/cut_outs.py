"""Readers of StoryMaker, MasterWeaver and W+ adapters: the cut-out person, the parsed face, the latent given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from dp_adapter.identity.crops.parsed_face import parsed_crop
from dp_adapter.identity.crops.person_cut_out import person_crop
from dp_adapter.identity.faces.face_parsing import FaceParser
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.session.readers.clip import Ask, Reading, Values, read_clip
from dp_adapter.weights.checkpoint import Encoder

PERSON_CROP, PARSED_CROP = "person", "parsed"

Cut = Callable[[SeenPhoto, FaceParser], Picture]


def cut_person(one: SeenPhoto, parser: FaceParser) -> Picture:
    """The person of the chosen face, as StoryMaker takes them."""
    return person_crop(one.picture, one.face, one.faces, parser)


def cut_parsed(one: SeenPhoto, parser: FaceParser) -> Picture:
    """The chosen face, as MasterWeaver takes it."""
    return parsed_crop(one.picture, one.face, parser)


def read_clip_person(reading: Reading, ask: Ask) -> Values:
    """``clip_person`` [1, L, c] of the tower that has this width."""
    name, vectors, versions, _ = read_clip(reading, ask, PERSON_CROP, "hidden", _kept(reading, PERSON_CROP, cut_person))
    return Values(name, {"clip_person": vectors}, versions)


def read_clip_parsed(reading: Reading, ask: Ask) -> Values:
    """``clip_hidden`` [1, L, c] of the tower that has this width, and of a black picture."""
    name, vectors, versions, zeros = read_clip(
        reading, ask, PARSED_CROP, "hidden", _kept(reading, PARSED_CROP, cut_parsed)
    )
    assert zeros is not None
    return Values(name, {"clip_hidden": vectors}, versions, {"clip_hidden_uncond": zeros})


def read_latents(_reading: Reading, ask: Ask) -> Values:
    """``w_plus`` [1, 18, 512], which the user gives."""
    return Values("w-plus", {"w_plus": [one.values for one in ask.latents]})


READERS: Mapping[Encoder, Callable[[Reading, Ask], Values]] = {
    "clip-person": read_clip_person,
    "clip-parsed": read_clip_parsed,
    "w-plus": read_latents,
}


def _kept(reading: Reading, crop: str, cut: Cut) -> Callable[[SeenPhoto], Picture]:
    """A crop that is cut out once: parsing takes longer than looking it up."""

    def make(one: SeenPhoto) -> Picture:
        parser = reading.encoders.parser
        key = (one.digest, one.treated, one.face.box.tobytes(), parser.name, crop)
        return np.asarray(reading.kept.get(key, lambda: torch.as_tensor(cut(one, parser))), np.uint8)

    return make
