"""Each person's photo as the picture's self-attention looks at it: cut to the picture's shape, masked, encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from dp_adapter import naming
from dp_adapter.core.reference_photo import ReferencePhoto
from dp_adapter.errors import SettingsError
from dp_adapter.identity.crops.person_cut_out import person_mask
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.face import Face
from dp_adapter.session.photos.features import Person
from dp_adapter.session.photos.reference_photos import Known, SeenPhoto
from dp_adapter.session.scene import EncodePicture, Picture, Scene
from dp_adapter.settings import ReferenceAttention

_FIELD = "reference_attention.weight"
_AROUND = 4.0  # short side of what is shown, in sizes of the face: head and shoulders with some air


def add_reference_photos(
    persons: Mapping[int, Person], asked: ReferenceAttention, scene: Scene, encoders: EncoderPool
) -> dict[int, Person]:
    """The persons with the photo to look at, of several the best one.

    Raises:
        SettingsError: a person has no photo here, or the host cannot encode pictures.
        CatalogError, MissingDependencyError: the parser's network is not here.
    """
    if scene.encode_picture is None:
        raise SettingsError(_FIELD, "this host does not encode pictures", "Set it to 0.", 0.0)
    chosen = {number: _best_photo(number, person.sources) for number, person in persons.items()}
    return {
        number: replace(
            person,
            reference=_encode(chosen[number], asked, scene, encoders, scene.encode_picture),
            reference_number=chosen[number].number,
        )
        for number, person in persons.items()
    }


def _best_photo(person: int, sources: Sequence[Known]) -> SeenPhoto:
    photos = [one for one in sources if isinstance(one, SeenPhoto)]
    if not photos:
        raise SettingsError(
            _FIELD,
            f"{naming.person(person)} has no photo that could be looked at: saved identities, latents and personalised "
            "identities hold none",
            "Give a photo, or set it to 0.",
            0.0,
        )
    return max(photos, key=lambda one: one.weight * one.quality.score)


def _encode(
    photo: SeenPhoto, asked: ReferenceAttention, scene: Scene, encoders: EncoderPool, encode: EncodePicture
) -> ReferencePhoto:
    mask = person_mask(photo.picture, photo.face, photo.faces, encoders.parser)
    box = shown_box(photo.face, photo.picture.shape[:2], scene)
    picture = resize(cut(photo.picture, box), scene)
    covered = resize(cut(mask.astype(np.uint8) * 255, box), scene).astype(np.float32) / 255
    return ReferencePhoto(encode(picture).float(), torch.as_tensor(covered)[None], asked.weight, asked.start, asked.end)


def shown_box(face: Face, size: tuple[int, int], scene: Scene) -> tuple[int, int, int, int]:
    """The part x, y, width, height of a photo of ``size`` (height, width) that is shown, in the picture's shape.

    The face is in its middle as far as the photo reaches. No larger than head and shoulders, so that the face has
    many positions, unless the photo would be enlarged for that.
    """
    height, width = size
    short = min(scene.width, scene.height)
    shape = scene.width / short, scene.height / short
    whole = min(width / shape[0], height / shape[1])
    side = min(whole, max(_AROUND * face.size, float(short)))
    w, h = max(1, round(side * shape[0])), max(1, round(side * shape[1]))
    w, h = min(w, width), min(h, height)
    x, y = (float(centre) - side / 2 for centre, side in zip(face.centre, (w, h), strict=True))
    return min(max(round(x), 0), width - w), min(max(round(y), 0), height - h), w, h


def cut(picture: Picture, box: tuple[int, int, int, int]) -> Picture:
    """The part x, y, width, height of a picture [h, w, ...]."""
    x, y, w, h = box
    return np.ascontiguousarray(picture[y : y + h, x : x + w])


def resize(picture: Picture, scene: Scene) -> Picture:
    """A picture [h, w, ...] in the size of the one to be made."""
    import cv2

    smaller = picture.shape[0] > scene.height
    how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (scene.width, scene.height), interpolation=how), np.uint8)
