"""What a session keeps between generations, and what makes it look again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dp_adapter.errors import FaceError, WeightsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.detector import Detector
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_encoders import FaceEncoder
from dp_adapter.identity.pictures.dropped_photos import DroppedPhotos
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.identity.saved.identity_library import IdentityLibrary
from dp_adapter.session import Session
from dp_adapter.session.photos.latents import Latents
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import Checkpoint
from tests import tiny
from tests.session.conftest import SCENE, Request


class CountingDetector:
    """The real detector, counted."""

    def __init__(self, inner: Detector) -> None:
        self.inner = inner
        self.name = inner.name
        self.calls = 0

    def detect(self, picture: Picture) -> list[Face]:
        self.calls += 1
        return self.inner.detect(picture)


class CountingEncoder:
    """The real encoder, counted."""

    def __init__(self, inner: FaceEncoder) -> None:
        self.inner = inner
        self.name, self.dim, self.version = inner.name, inner.dim, inner.version
        self.calls = 0

    def embed(self, picture: Picture, face: Face) -> Floats:
        self.calls += 1
        return self.inner.embed(picture, face)


@pytest.fixture
def counted(session: Session) -> tuple[Session, CountingDetector, CountingEncoder]:
    detector, encoder = CountingDetector(session.encoders.yunet), CountingEncoder(session.encoders.sface)
    session.encoders.yunet, session.encoders.sface = detector, encoder
    return session, detector, encoder


Counted = tuple[Session, CountingDetector, CountingEncoder]


def test_the_same_photo_is_looked_at_once(
    counted: Counted, request_of: Request, portrait: Path, tmp_path: Path
) -> None:
    session, detector, encoder = counted
    first = session.prepare(request_of(), SCENE)
    second = session.prepare(request_of(weight=0.3, blend="norm"), SCENE)
    assert (detector.calls, encoder.calls) == (1, 1)
    one, two = (prepared.injection.identities[0] for prepared in (first, second))
    assert one.adapter is two.adapter and torch.equal(one.tokens.cond, two.tokens.cond)
    copy = shutil.copy(portrait, tmp_path / "other name.png")
    session.prepare(request_of(copy), SCENE)
    assert (detector.calls, encoder.calls) == (1, 1), "content decides, not the name"


def test_a_changed_photo_is_seen(counted: Counted, request_of: Request, portrait: Path, tmp_path: Path) -> None:
    session, detector, encoder = counted
    path = Path(shutil.copy(portrait, tmp_path / "photo.png"))
    before = session.prepare(request_of(path), SCENE)
    with Image.open(portrait) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    after = session.prepare(request_of(path), SCENE)
    assert (detector.calls, encoder.calls) == (2, 2)
    assert not torch.equal(*(p.injection.identities[0].tokens.cond for p in (before, after)))
    assert before.explanation.persons[0].photos[0].digest != after.explanation.persons[0].photos[0].digest


def test_a_changed_adapter_is_seen(session: Session, models: Path, request_of: Request) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = models / "dp_adapter" / "untrained.safetensors"
    before = session.prepare(request_of(), SCENE).injection.identities[0]
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
        changed = {key: file.get_tensor(key) * 2 for key in file.keys()}  # noqa: SIM118
    path.unlink()
    save_file(changed, str(path), metadata=metadata)
    after = session.prepare(request_of(), SCENE).injection.identities[0]
    assert after.adapter is not before.adapter and not torch.equal(after.tokens.cond, before.tokens.cond)


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    detector = CountingDetector(EncoderPool([]).yunet)
    photos = ReferencePhotos(EncoderPool([]), True, DroppedPhotos(0), IdentityLibrary([]), Latents([], True), limit=2)
    pictures = [np.full((33, 33 + number, 3), number, np.uint8) for number in range(3)]
    for picture in (*pictures, pictures[2], pictures[1]):
        photos.faces(picture, detector)
    assert detector.calls == 3
    photos.faces(pictures[0], detector)
    assert detector.calls == 4, "the first was let go"


def test_three_adapters_do_not_pile_up(session: Session, models: Path, request_of: Request) -> None:
    folder = models / "dp_adapter"
    for name in "abc":
        shutil.copy(folder / "untrained.safetensors", folder / f"{name}.safetensors")
    loaded = {name: session.checkpoint(name) for name in "abc"}
    assert session.checkpoint("c") is loaded["c"] and session.checkpoint("b") is loaded["b"]
    assert session.checkpoint("a") is not loaded["a"]


def test_switching_between_two_adapters_reads_no_file(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as both have room; else the one that was not used for longest goes."""
    real, read = formats.read, list[str]()

    def counted(path: Path) -> Checkpoint:
        read.append(path.stem)
        return real(path)

    monkeypatch.setattr(formats, "read", counted)
    tensors = tiny.family_tensors("ip-adapter", tokens=96)
    for name in "abc":
        file = tiny.write(models / "dp_adapter" / f"{name}.safetensors", tensors, "safetensors")
        assert 2**20 / 3 < file.stat().st_size < 2**20 / 2, "two have room in a MB"
    session = Session([models], paths_allowed=True, checkpoints=8, checkpoints_mb=1)
    for name in "ababab":
        session.checkpoint(name)
    assert read == ["a", "b"]
    for name in "cbca":
        session.checkpoint(name)
    assert read == ["a", "b", "c", "a"]


def test_release_lets_go_and_the_next_works(counted: Counted, request_of: Request) -> None:
    session, detector, _ = counted
    before = session.prepare(request_of(), SCENE).injection.identities[0]
    session.release()
    assert session.encoders.yunet is not detector, "the networks are new"
    after = session.prepare(request_of(), SCENE).injection.identities[0]
    assert after.adapter is not before.adapter
    assert torch.equal(before.tokens.cond, after.tokens.cond)
    session.release()
    session.release()


def test_a_failed_prepare_leaves_nothing_behind(
    counted: Counted, request_of: Request, models: Path, portrait: Path, faceless: Path
) -> None:
    session, _, encoder = counted
    files = sorted(models.rglob("*"))
    for settings, error in (
        (request_of(portrait, faceless), FaceError),
        (request_of(face={"choice": "index", "index": 5}), FaceError),
        (request_of(model="absent"), WeightsError),
    ):
        with pytest.raises(error):
            session.prepare(settings, SCENE)
    assert encoder.calls == 0 and sorted(models.rglob("*")) == files
    good = session.prepare(request_of(), SCENE).injection.identities[0]
    fresh = Session([models], True).prepare(request_of(), SCENE).injection.identities[0]
    assert torch.equal(good.tokens.cond, fresh.tokens.cond) and good.weight == fresh.weight


def test_a_network_that_fails_once_is_asked_again(counted: Counted, request_of: Request) -> None:
    session, detector, _ = counted
    working, detector.inner = detector.inner, Broken()
    with pytest.raises(MemoryError):
        session.prepare(request_of(), SCENE)
    detector.inner = working
    assert session.prepare(request_of(), SCENE).injection.active


class Broken:
    """A detector on a full device."""

    name = "yunet"

    def detect(self, picture: Picture) -> list[Face]:
        raise MemoryError
