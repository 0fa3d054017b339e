"""The photo that self-attention looks at: which, cut how, at which size, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.errors import SettingsError
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.session import Scene, Session
from dp_adapter.session.photos.reference_attention import cut, resize, shown_box
from tests.session.conftest import SCENE, Request

LOOKING = {"weight": 0.6, "start": 0.1, "end": 0.9}


def encoding(seen: list[Picture]) -> Scene:
    """A scene whose host keeps what it is asked to encode; the latents are each cell's mean colour and brightness."""

    def encode(picture: Picture) -> Tensor:
        seen.append(picture)
        small = torch.as_tensor(picture).double().permute(2, 0, 1)[None]
        cells = torch.nn.functional.avg_pool2d(small, 8)[0]
        return torch.cat([cells, cells.mean(0, keepdim=True)])

    return replace(SCENE, encode_picture=encode)


def test_the_photo_is_cut_encoded_and_told(portrait_session: Session, request_of: Request) -> None:
    seen: list[Picture] = []
    prepared = portrait_session.prepare(request_of(reference_attention=LOOKING), encoding(seen))
    reference = prepared.injection.identities[0].reference
    assert reference is not None and (reference.weight, reference.start, reference.end) == (0.6, 0.1, 0.9)
    assert [picture.shape for picture in seen] == [(128, 128, 3)] and reference.latents.dtype == torch.float32
    assert reference.latents.shape == (4, 16, 16) and reference.mask is not None
    assert reference.mask.shape == (1, 128, 128) and 0.1 < float(reference.mask.mean()) < 0.9
    faces = portrait_session.encoders.yunet.detect(seen[0])
    assert len(faces) == 1
    x, y = (int(value) for value in faces[0].centre)
    assert reference.mask[0, y, x] == 1
    told = prepared.explanation.persons[0]
    assert told.looks_at == "photo attention 0.6 from 0.1 to 0.9 to photo 1"


def test_a_hires_pass_encodes_at_its_own_size(portrait_session: Session, request_of: Request) -> None:
    seen: list[Picture] = []
    scene = replace(encoding(seen), width=192, height=128)
    settings = request_of(reference_attention=LOOKING)
    portrait_session.prepare(settings.in_hires_pass(), scene)
    assert [picture.shape for picture in seen] == [(128, 192, 3)]


def test_off_nothing_is_encoded(portrait_session: Session, request_of: Request) -> None:
    seen: list[Picture] = []
    prepared = portrait_session.prepare(request_of(), encoding(seen))
    assert not seen and prepared.injection.identities[0].reference is None
    assert prepared.explanation.persons[0].looks_at == ""


def test_the_best_photo_is_taken(portrait_session: Session, request_of: Request, portrait: Path) -> None:
    photos = [{"image": str(portrait), "weight": 0.5}, {"image": str(portrait), "weight": 1.0}]
    seen: list[Picture] = []
    portrait_session.prepare(request_of(*photos, reference_attention=LOOKING), encoding(seen))
    assert len(seen) == 1


def test_refusals(session: Session, models: Path, request_of: Request) -> None:
    settings = request_of(reference_attention=LOOKING)
    with pytest.raises(SettingsError, match="does not encode pictures"):
        session.prepare(settings, SCENE)
    session.save_identity("Anna", request_of())
    with pytest.raises(SettingsError, match="person 1 has no photo that could be looked at") as caught:
        session.prepare(request_of("identity:Anna", reference_attention=LOOKING), encoding([]))
    assert caught.value.field == "reference_attention.weight"


@pytest.mark.parametrize(
    ("box", "size", "scene", "window"),
    [
        ((40, 40, 60, 60), (400, 400), (64, 64), (10, 10, 80, 80)),  # four faces around a small one
        ((40, 40, 60, 60), (400, 400), (256, 256), (0, 0, 256, 256)),  # but no larger than life
        ((100, 100, 300, 300), (400, 400), (64, 64), (0, 0, 400, 400)),  # the whole photo, where the face is large
        ((300, 20, 380, 100), (100, 400), (64, 64), (290, 0, 100, 100)),  # as high as it is, around the face
        ((40, 40, 60, 60), (400, 400), (128, 64), (0, 10, 160, 80)),  # in the picture's shape
    ],
)
def test_what_of_the_photo_is_shown(
    box: tuple[int, ...], size: tuple[int, int], scene: tuple[int, int], window: tuple[int, ...]
) -> None:
    face = Face(np.array(box, np.float32), np.zeros((5, 2), np.float32), 1.0)
    assert shown_box(face, size, replace(SCENE, width=scene[0], height=scene[1])) == window


def test_cut_and_resized(portrait: Path) -> None:
    picture = load_picture(portrait)
    part = cut(picture, (100, 50, 64, 32))
    assert np.array_equal(part, picture[50:82, 100:164])
    assert resize(part, replace(SCENE, width=128, height=64)).shape == (64, 128, 3)
