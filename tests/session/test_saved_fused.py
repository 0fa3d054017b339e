"""Saved identities in place of their photos, for the families that are fused into a word."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.errors import IdentityError, SettingsError
from dp_adapter.identity.crops.face_parts import PARTS
from dp_adapter.identity.encoders.encoder_folders import INSIGHTFACE_FOLDERS
from dp_adapter.identity.saved.saved_identity import FaceView
from dp_adapter.session import Prepared, Scene, Session
from dp_adapter.session.readers.own_tower import towers_inside
from tests import tiny
from tests.identity.encoders.test_encoder_pool import save_tower
from tests.session.conftest import Request
from tests.session.test_saved import small_pack
from tests.weights import fused_files as files
from tests.weights.numbers import numbers

SDXL, SD15 = Scene("sdxl", 128, 128), Scene("sd15", 128, 128)
CLIP = f"clip/{tiny.CLIP}x2x{tiny.CLIP}"
Version = Literal["v1", "v2"]


@pytest.fixture
def root(models: Path) -> Path:
    """The models folder without adapters."""
    (models / "dp_adapter" / "untrained.safetensors").unlink()
    return models


def photomaker(root: Path, version: Version = "v1", name: str = "", shift: float = 0.0) -> Path:
    """A file; another ``shift`` is another training."""
    tensors = files.photomaker_tensors(version, tiny.CONTEXT, 20)
    tensors["id_encoder"]["vision_model.post_layernorm.bias"] += shift
    tensors["id_encoder"]["vision_model.pre_layrnorm.bias"] += shift
    return tiny.write(root / "dp_adapter" / f"{name or f'photomaker-{version}'}.bin", tensors, "zip")


def fused(prepared: Prepared) -> Tensor:
    """What the person makes of a text, and at how many tokens."""
    text = prepared.injection.identities[0].text
    assert text is not None
    context = numbers("context", (20, tiny.CONTEXT))
    return text.fuse(context, range(2, 2 + text.tokens))


def no_tower(*_: object) -> Tensor:
    raise AssertionError("a photo is looked at")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_photomaker_without_photos_and_pack(
    root: Path, request_of: Request, people: list[Path], version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = 1 if version == "v1" else 2
    if version == "v2":
        small_pack(root, "buffalo_l")
    photomaker(root, version)
    session = Session([root], True)
    live = session.prepare(request_of(*people[:2]), SDXL)
    saved = session.save_identity("Anna", request_of(*people[:2]))
    (kind,) = (kind for kind in saved.encoders if kind.startswith("photomaker/"))
    detector = "yunet" if version == "v1" else "insightface/buffalo_l"
    assert saved.photos[0].views[detector].vectors[f"{kind}/ids"].shape == (tokens, tiny.CONTEXT)
    assert saved.encoders[kind] == kind.partition("/")[2]
    if version == "v2":
        shutil.rmtree(root / INSIGHTFACE_FOLDERS[0])
    fresh = Session([root], False)
    tower = fresh.checkpoint(f"photomaker-{version}").adapter.projection.get_submodule("vision_model")
    monkeypatch.setattr(tower, "forward", no_tower)
    made = fresh.prepare(request_of("identity:Anna"), SDXL)
    assert torch.equal(fused(made), fused(live))
    assert [p.agreement for p in made.explanation.persons[0].photos] == [
        p.agreement for p in live.explanation.persons[0].photos
    ]
    best = fresh.prepare(request_of("identity:Anna", combine="best"), SDXL)
    assert best.injection.identities[0].text is not None and best.injection.identities[0].text.tokens == tokens


def test_a_photo_beside_a_saved_identity(root: Path, request_of: Request, people: list[Path]) -> None:
    photomaker(root)
    session = Session([root], True)
    session.save_identity("Anna", request_of(people[0]))
    live = session.prepare(request_of(*people[:2]), SDXL)
    made = Session([root], True).prepare(request_of("identity:Anna", people[1]), SDXL)
    assert torch.equal(fused(made), fused(live))


def test_photomaker_files_are_told_apart(root: Path, request_of: Request, people: list[Path]) -> None:
    session = Session([root], True)
    session.save_identity("Before", request_of(people[0]))
    photomaker(root)
    words = (
        r"references\[0\]\.image: PhotoMaker v1 looks at photos itself, and the saved identity 'Before' keeps neither "
        r"them nor what it saw\. Give the photos, or save .* while photomaker-v1\.bin is among the models"
    )
    with pytest.raises(SettingsError, match=words):
        session.prepare(request_of("identity:Before"), SDXL)
    photomaker(root, name="copy")
    other = photomaker(root, name="other", shift=0.1)
    saved = session.save_identity("Anna", request_of(people[0]))
    assert len([kind for kind in saved.encoders if kind.startswith("photomaker/")]) == 2, "the copy is the same tower"
    for model in ("photomaker-v1", "copy", "other"):
        one, another = (session.prepare(request_of(who, model=model), SDXL) for who in ("identity:Anna", people[0]))
        assert torch.equal(fused(one), fused(another)), model
    tiny.write(other, files.photomaker_tensors("v1", tiny.CONTEXT, 20), "zip")
    photomaker(root, name="third", shift=0.2)
    with pytest.raises(SettingsError, match=r"'Anna' keeps what other files of its kind saw, not this one\. Give the"):
        session.prepare(request_of("identity:Anna", model="third"), SDXL)


def test_files_that_cannot_be_looked_with_are_told(root: Path, request_of: Request, people: list[Path]) -> None:
    photomaker(root, "v2")
    photomaker(root, name="broken", shift=float("nan"))
    (root / "dp_adapter" / "text.bin").write_bytes(b"no weights")
    saved = Session([root], True).save_identity("Anna", request_of(people[0]))
    assert not any(kind.startswith("photomaker/") for kind in saved.encoders)
    notes = [note for note in saved.notes if note.startswith(("photomaker", "broken", "text"))]
    assert notes[0].startswith("broken.bin is left out: broken.bin holds NaN")
    assert notes[1:] == ["photomaker-v2.bin is left out: it also takes arcface/buffalo_l."]


def test_only_the_encoder_of_a_file_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the LoRA, which is the half of it."""
    path = photomaker(root)
    library = Session([root], True).library
    tensors = files.photomaker_tensors("v1", tiny.CONTEXT, 20)
    lora = {key: torch.full_like(value, torch.nan) for key, value in tensors["lora_weights"].items()}
    tiny.write(path, {**tensors, "lora_weights": lora}, "zip")
    notes: list[str] = []
    ((name, tower),) = towers_inside(library, notes)
    assert name == "photomaker-v1.bin" and tower.pack is None and not notes


# ConsistentID.


@pytest.fixture
def consistent(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_pack(root, "buffalo_l")
    monkeypatch.setattr(tiny, "FACE", 512)
    save_tower(root / "clip_vision" / "tower", tiny.CLIP, tiny.CLIP)
    tiny.write(root / "dp_adapter" / "consistentid.bin", files.consistentid_tensors("sd15", tiny.CONTEXT), "zip")
    return root


def without_encoders(root: Path) -> Session:
    shutil.rmtree(root / INSIGHTFACE_FOLDERS[0])
    shutil.rmtree(root / "clip_vision")
    return Session([root], False)


def same_tokens(one: Prepared, other: Prepared) -> bool:
    left, right = (prepared.injection.identities[0].tokens for prepared in (one, other))
    return torch.equal(left.cond, right.cond) and torch.equal(left.uncond, right.uncond)


def test_consistentid_without_photos_and_encoders(consistent: Path, request_of: Request, people: list[Path]) -> None:
    session = Session([consistent], True)
    live = [session.prepare(request_of(*photos), SD15) for photos in (people[:1], people[:2])]
    saved = session.save_identity("Anna", request_of(people[0]))
    vectors = saved.photos[0].views["insightface/buffalo_l"].vectors
    assert vectors[f"{CLIP}/parts/hidden"].shape == (len(PARTS), *saved.zeros[CLIP].shape)
    assert f"{CLIP}/parts/hidden" not in saved.photos[0].views["yunet"].vectors
    assert not any("/photo/" in name for name in vectors), "a whole photo is kept once"
    both = session.prepare(request_of("identity:Anna", people[1]), SD15)
    session.save_identity("Both", request_of(*people[:2]))
    fresh = without_encoders(consistent)
    for made, expected in (
        (fresh.prepare(request_of("identity:Anna"), SD15), live[0]),
        (fresh.prepare(request_of("identity:Both"), SD15), live[1]),
        (both, live[1]),
    ):
        assert same_tokens(made, expected)
        torch.testing.assert_close(fused(made), fused(expected), atol=2e-3, rtol=2e-3)  # kept in half precision
        assert not made.explanation.notes


@pytest.mark.parametrize("shown", [(True, False, False, True, False), (False,) * 5])
def test_parts_that_do_not_show_stay_out(
    consistent: Path, request_of: Request, people: list[Path], shown: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(picture: np.ndarray, *_: object) -> tuple[np.ndarray | None, ...]:
        return tuple(picture if one else None for one in shown)

    monkeypatch.setattr("dp_adapter.session.readers.clip.part_pictures", some)
    session = Session([consistent], True)
    live = session.prepare(request_of(people[0]), SD15)
    session.save_identity("Anna", request_of(people[0]))
    made = without_encoders(consistent).prepare(request_of("identity:Anna"), SD15)
    for prepared in (live, made):
        text = prepared.injection.identities[0].text
        assert text is not None and text.tokens == sum(shown)
    torch.testing.assert_close(fused(made), fused(live), atol=2e-3, rtol=2e-3)


def test_an_identity_without_parts_is_refused(consistent: Path, request_of: Request, people: list[Path]) -> None:
    session = Session([consistent], True)
    saved = session.save_identity("Anna", request_of(people[0]))
    photo = saved.photos[0]

    def save(view: FaceView) -> None:
        views = {**photo.views, "insightface/buffalo_l": view}
        session.identities.save(replace(saved, photos=(replace(photo, views=views),)), replace=True)

    view = photo.views["insightface/buffalo_l"]
    without = {key: value for key, value in view.vectors.items() if "/parts/" not in key}
    save(replace(view, vectors=without))
    with pytest.raises(SettingsError, match=r"'Anna' has no vectors of the parts of the face, which this model takes"):
        session.prepare(request_of("identity:Anna"), SD15)
    longer = np.tile(view.vectors[f"{CLIP}/parts/hidden"], (1, 2, 1))
    with pytest.raises(IdentityError, match=rf"its vectors of {CLIP} have 5 and 10 tokens"):
        save(replace(view, vectors={**without, f"{CLIP}/parts/hidden": longer}))
