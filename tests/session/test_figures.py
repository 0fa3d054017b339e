"""StoryMaker, MasterWeaver and W+ adapters through a whole ``prepare``, with tiny random towers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from dp_adapter.core.types import Features
from dp_adapter.errors import PictureError, SettingsError, WeightsError
from dp_adapter.identity.crops.face_without_background import crop_parsed_face
from dp_adapter.identity.crops.person_cut_out import cut_out_person
from dp_adapter.identity.encoders.clip import ClipVision
from dp_adapter.identity.encoders.encoder_folders import INSIGHTFACE_FOLDERS
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import norm_crop
from dp_adapter.identity.faces.face_parsing import SelfieParser
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.session import Prepared, Scene, Session
from dp_adapter.session.photos.features import FeatureReader
from dp_adapter.session.photos.w_plus import Directions
from dp_adapter.session.results.judge import Judge
from dp_adapter.settings import Settings
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import RecipeOptions
from tests import tiny
from tests.session.conftest import SCENE, Request
from tests.session.test_saved import small_pack

SDXL = Scene("sdxl", 128, 128)
LATENT = torch.randn(1, 18, 512, generator=torch.Generator().manual_seed(0))


def put(root: Path, tensors: tiny.Nested) -> Path:
    return tiny.write(root / "dp_adapter" / "adapter.safetensors", tensors, "safetensors")


def latent_file(root: Path, name: str = "anna.pth", latent: torch.Tensor = LATENT) -> Path:
    folder = root / "dp_adapter" / "latents"
    folder.mkdir(exist_ok=True)
    torch.save(latent, folder / name)
    return folder / name


def same(one: Prepared, other: Prepared) -> bool:
    left, right = (prepared.injection.identities[0].tokens for prepared in (one, other))
    return torch.equal(left.cond, right.cond) and torch.equal(left.uncond, right.uncond)


# MasterWeaver


def test_masterweaver_sees_the_parsed_face(root: Path, request_of: Request, portrait: Path) -> None:
    path = put(root, tiny.masterweaver_tensors())
    made = Session([root], True).prepare(request_of(), SCENE)
    picture = load_picture(portrait)
    crop = crop_parsed_face(picture, YuNet().detect(picture)[0], SelfieParser())
    tower = ClipVision(root / "clip_vision" / "tower")
    features = Features(clip_hidden=tower.encode(crop).hidden, clip_hidden_uncond=tower.zeros().hidden)
    expected, tokens = formats.read(path).tokens(features), made.injection.identities[0].tokens
    torch.testing.assert_close(tokens.cond, expected.cond)
    torch.testing.assert_close(tokens.uncond, expected.uncond)
    assert len(tokens.cond) == 12 and made.explanation.blend == "add" and made.explanation.family == "masterweaver"


def test_masterweaver_takes_the_best_three_photos(root: Path, request_of: Request, people: list[Path]) -> None:
    put(root, tiny.masterweaver_tensors())
    session = Session([root], True)
    weights = (1.0, 0.3, 1.0, 1.0)
    photos = [{"image": str(path), "weight": weight} for path, weight in zip(people[:4], weights, strict=True)]
    four = session.prepare(request_of(*photos), SCENE)
    three = session.prepare(request_of(people[0], people[2], people[3]), SCENE)
    assert same(four, three) and len(four.injection.identities[0].tokens.cond) == 12
    assert any("The best 3 of 4 photos are used" in note for note in four.explanation.notes)
    assert not three.explanation.notes and len(four.explanation.persons[0].photos) == 3
    averaged = session.prepare(request_of(*people[:4], combine="average"), SCENE)
    assert not averaged.explanation.notes


def test_a_saved_identity_carries_the_parsed_face(root: Path, request_of: Request, people: list[Path]) -> None:
    put(root, tiny.masterweaver_tensors())
    session = Session([root], True)
    live = session.prepare(request_of(people[0]), SCENE)
    saved = session.save_identity("Anna", request_of(people[0]))
    kind = f"clip/{tiny.CLIP}x2x{tiny.CLIP}"
    assert f"{kind}/parsed/hidden" in saved.photos[0].views["yunet"].vectors
    shutil.rmtree(root / "clip_vision")
    assert same(Session([root], False).prepare(request_of("identity:Anna"), SCENE), live)
    without_crop(session, "Anna", "parsed")
    words = (
        r"references\[0\]\.image: the saved identity 'Anna' has no vectors of the face without its background, which "
        r"this model takes\. Save the identity again from its photos\."
    )
    with pytest.raises(SettingsError, match=words):
        Session([root], False).prepare(request_of("identity:Anna"), SCENE)


def without_crop(session: Session, name: str, crop: str) -> None:
    """The identity as it was saved before a crop was known."""
    saved = session.identities.load(name)
    photos = tuple(
        replace(
            photo,
            views={
                detector: replace(
                    view, vectors=MappingProxyType({k: v for k, v in view.vectors.items() if f"/{crop}/" not in k})
                )
                for detector, view in photo.views.items()
            },
        )
        for photo in saved.photos
    )
    session.identities.save(replace(saved, photos=photos), replace=True)


# StoryMaker


@pytest.fixture
def story(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A StoryMaker checkpoint that takes real ArcFace vectors, and insightface's small networks."""
    monkeypatch.setattr(tiny, "FACE", 512)
    small_pack(root, "buffalo_l")
    put(root, tiny.storymaker_tensors())
    return root


def seen_by(root: Path, path: Path) -> Features:
    session = Session([root], True)
    pack, picture = session.encoders.pack("buffalo_l"), load_picture(path)
    faces = pack.detect(picture)
    face = max(faces, key=lambda one: one.size)
    tower = ClipVision(root / "clip_vision" / "tower")
    return Features(
        faceid=torch.as_tensor(session.encoders.arcface("buffalo_l", normed=True).embed(picture, face))[None],
        clip_hidden=tower.encode(norm_crop(picture, face.points, 224)).hidden,
        clip_person=tower.encode(cut_out_person(picture, face, faces, SelfieParser())).hidden,
    )


def test_storymaker_sees_face_and_figure(story: Path, request_of: Request, people: list[Path]) -> None:
    made = Session([story], True).prepare(request_of(people[0], lora_weight=0.8), SDXL)
    checkpoint = formats.read(story / "dp_adapter" / "adapter.safetensors")
    expected, tokens = checkpoint.tokens(seen_by(story, people[0])), made.injection.identities[0].tokens
    torch.testing.assert_close(tokens.cond, expected.cond, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.uncond, expected.uncond, atol=1e-5, rtol=1e-4)
    assert len(tokens.cond) == 12 and len(made.injection.lora) == 560 and made.explanation.lora == 0.8
    assert made.mode is not None and made.mode.settings.parts.clothes == made.mode.settings.parts.hair == 1.0
    own = Session([story], True).prepare(request_of(people[0], parts={"clothes": 0.5}), SDXL)
    assert own.mode is not None and own.mode.settings.parts.clothes == 0.5


def test_each_person_of_a_story_has_their_place(story: Path, request_of: Request, people: list[Path]) -> None:
    persons = [{"image": str(people[2 * n]), "identity": n} for n in range(4)]
    session = Session([story], True)
    made = session.prepare(request_of(*persons[:2]), SDXL)
    checkpoint = formats.read(story / "dp_adapter" / "adapter.safetensors")
    for number, identity in enumerate(made.injection.identities):
        expected = checkpoint.tokens(seen_by(story, people[2 * number]), RecipeOptions(person=number))
        torch.testing.assert_close(identity.tokens.cond, expected.cond, atol=1e-5, rtol=1e-4)
    assert any("also carries hair, neck, clothes: draw a region" in note for note in made.explanation.notes)
    assert made.mode is not None and made.mode.settings.parts.clothes is None
    with pytest.raises(WeightsError, match=r"at most 3 persons; person 4 is one too many\. Use fewer"):
        session.prepare(request_of(*persons), SDXL)


def test_a_story_goes_on_without_photos(story: Path, request_of: Request, people: list[Path]) -> None:
    session = Session([story], True)
    live = session.prepare(request_of(people[0]), SDXL)
    best = session.prepare(request_of({"image": str(people[0]), "weight": 1.5}, people[2]), SDXL)
    assert same(best, live) and best.explanation.persons[0].combine == "best", "one photo of a person, as trained"
    saved = session.save_identity("Anna", request_of(people[0]))
    kind = f"clip/{tiny.CLIP}x2x{tiny.CLIP}"
    assert f"{kind}/person/hidden" in saved.photos[0].views["insightface/buffalo_l"].vectors
    shutil.rmtree(story / INSIGHTFACE_FOLDERS[0])
    shutil.rmtree(story / "clip_vision")
    assert same(Session([story], False).prepare(request_of("identity:Anna"), SDXL), live)
    without_crop(session, "Anna", "person")
    with pytest.raises(SettingsError, match=r"has no vectors of the cut-out person, which this model takes\. Save"):
        Session([story], False).prepare(request_of("identity:Anna"), SDXL)


# W+ adapter


def test_a_latent_in_place_of_a_photo(root: Path, request_of: Request) -> None:
    path, file = put(root, tiny.w_plus_tensors()), latent_file(root)
    made = Session([root], False).prepare(request_of("latent:anna"), SCENE)
    expected = formats.read(path).tokens(Features(w_plus=LATENT))
    (identity,) = made.injection.identities
    assert torch.equal(identity.tokens.cond, expected.cond) and torch.equal(identity.tokens.uncond, expected.uncond)
    assert identity.mode == made.explanation.blend == "text_query" and made.explanation.form == "plain"
    assert len(made.explanation.persons[0].photos) == 1 and made.explanation.lines()
    for source, allowed in (("latent:anna.pth", False), (f"latent:{file}", True)):
        assert same(Session([root], allowed).prepare(request_of(source), SCENE), made)
    assert Session([root], False).library.files().keys() == {path.name}, "a latent is no model"


def test_several_latents_are_averaged(root: Path, request_of: Request) -> None:
    path = put(root, tiny.w_plus_tensors())
    latent_file(root)
    latent_file(root, "bea.pth", -0.5 * LATENT)
    session = Session([root], False)
    tokens = session.prepare(request_of("latent:anna", "latent:bea"), SCENE).injection.identities[0].tokens
    torch.testing.assert_close(tokens.cond, formats.read(path).tokens(Features(w_plus=0.25 * LATENT)).cond)
    weighted = request_of({"image": "latent:anna", "weight": 1.0}, {"image": "latent:bea", "weight": 0.5})
    expected = formats.read(path).tokens(Features(w_plus=LATENT * 0.75 / 1.5)).cond
    torch.testing.assert_close(session.prepare(weighted, SCENE).injection.identities[0].tokens.cond, expected)


def test_latents_are_refused_in_words(root: Path, request_of: Request, portrait: Path, tmp_path: Path) -> None:
    put(root, tiny.w_plus_tensors())
    file = latent_file(root)
    broken = LATENT.clone()
    broken[0, 0, 0] = torch.inf
    latent_file(root, "broken.pth", broken)
    latent_file(root, "short.pth", LATENT[:, :8])
    outside = tmp_path / "secret.pth"
    shutil.copy(file, outside)
    session = Session([root], False)
    for source, words in {
        "latent:anne": r"references\[0\]\.image: there is no latent 'anne'. Did you mean 'anna.pth'",
        "latent:zzz": r"there is no latent 'zzz'. Put it into .*latents",
        f"latent:{outside}": "there is no latent",
        f"latent:../../../{outside.name}": "there is no latent",
        "latent:../latents/anna.pth": "there is no latent",
        "latent:broken": r"references\[0\]\.image: broken.pth holds NaN or infinite",
        "latent:short": r"short.pth holds \[1, 8, 512\], not one latent of StyleGAN2. Give one as e4e",
    }.items():
        with pytest.raises(SettingsError, match=words):
            session.prepare(request_of(source), SCENE)
    with pytest.raises(SettingsError, match="references: W\\+ adapter takes latents of StyleGAN2, and a photo cannot"):
        Session([root], True).prepare(request_of(), SCENE)
    with pytest.raises(SettingsError, match="a photo cannot be turned into one"):
        Session([root], True).prepare(request_of("latent:anna", portrait), SCENE)
    with pytest.raises(SettingsError, match="blend: 'add' does not go with W\\+ adapter weights"):
        session.prepare(request_of("latent:anna", blend="add"), SCENE)
    put(root, tiny.family_tensors("ip-adapter"))
    with pytest.raises(
        SettingsError, match=r"references\[0\]\.image: a latent is of no use to IP-Adapter. Give a photo"
    ):
        Session([root], False).prepare(request_of("latent:anna"), SCENE)
    with pytest.raises(
        PictureError, match=r"references\[0\]\.image: 'latent:anna' is a latent for W\+ adapters, not a"
    ):
        session.save_identity("Anna", request_of("latent:anna"))
    assert Judge(session, request_of("latent:anna")).unknown == (0,), "nothing to compare a picture with"
    for wrong in ("latent:", "latent: "):
        with pytest.raises(SettingsError, match="does not name a picture"):
            Settings.from_dict({"references": [{"image": wrong}]})
    with pytest.raises(SettingsError, match=r"face.like: .* does not name a picture. Give .* identity:NAME"):
        request_of(face={"choice": "like", "like": "latent:anna"})
    with pytest.raises(PictureError, match="is a latent for W\\+ adapters, not a picture"):
        session.photos.read("latent:anna", "x")


# Directions


def directions(root: Path) -> Path:
    folder = root / "dp_adapter" / "w_directions"
    for name in ("interfacegan_directions", "latent_directions", "gan_space"):
        (folder / name).mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    one, each = torch.randn(1, 512, generator=generator), torch.randn(18, 512, generator=generator)
    for name in ("age", "smile"):
        torch.save(one, folder / "interfacegan_directions" / f"{name}.pt")
        np.save(folder / "latent_directions" / f"{name}.npy", each.double().numpy())
    np.save(folder / "latent_directions" / "emotion_happy.npy", each.double().numpy())
    components = torch.linalg.qr(torch.randn(512, 6, generator=generator))[0].T[:, None]
    pca = {"mean": torch.randn(1, 512, generator=generator), "comp": components, "std": torch.rand(6) + 0.5}
    torch.save(pca, folder / "gan_space" / "ffhq_pca.pt")
    (folder / "gan_space" / "ganspace_configs.csv").write_text("lipstick\t3\t8\t11\t20\nbald\t2\t0\t5\t20\n")
    return folder


def w_plus_of(root: Path, request_of: Request, **asked: object) -> torch.Tensor:
    """The latent that a request ends with."""
    session = Session([root], False)
    settings = request_of("latent:anna", w_plus=asked)
    latents = session.photos.latents(settings, 0)
    reader = FeatureReader(session.encoders, Directions([root]))
    person = reader.read([], latents, session.checkpoint(""), "w-plus", settings.combine, settings.w_plus)
    assert person.features.w_plus is not None
    return person.features.w_plus


def test_moves_along_the_official_directions(root: Path, request_of: Request) -> None:
    """As utils_direction.py and the demo have them, written out once more."""
    put(root, tiny.w_plus_tensors())
    latent_file(root)
    folder = directions(root)
    one = torch.load(folder / "interfacegan_directions" / "age.pt", weights_only=True)
    each = torch.as_tensor(np.load(folder / "latent_directions" / "age.npy")).float()
    early = torch.zeros(18, 512)
    early[:8] = each[:8]
    for asked, expected in (
        ({}, LATENT),
        ({"age": 2.5}, LATENT + 2.5 * one.unsqueeze(0).repeat(1, 18, 1)),
        ({"direction": "smile", "amount": -3.0}, LATENT - 3 * one),
        ({"direction": "emotion_happy", "amount": 4.0}, LATENT + 4 * early),
        ({"direction": "latent_directions/smile", "amount": 4.0}, LATENT + 4 * early),
        ({"direction": "smile"}, LATENT),
        ({"age": 1.0, "direction": "emotion_happy", "amount": 4.0}, LATENT + one + 4 * early),
    ):
        torch.testing.assert_close(w_plus_of(root, request_of, **asked), expected, msg=str(asked))
    pca = torch.load(folder / "gan_space" / "ffhq_pca.pt", weights_only=True)
    moved = w_plus_of(root, request_of, direction="lipstick", amount=5.0)[0]
    component, deviation = pca["comp"][3][0], pca["std"][3]
    coordinate = ((LATENT[0] - pca["mean"])[0] * component).sum() / deviation
    expected = LATENT[0].clone()
    expected[8:11] += (5.0 - coordinate) * component * deviation
    torch.testing.assert_close(moved, expected)


def test_a_direction_that_is_not_here_says_where_it_is(root: Path, request_of: Request) -> None:
    put(root, tiny.w_plus_tensors())
    latent_file(root)
    where = r"Copy the folder w_direction of github.com/csxmli2016/w-plus-adapter \(S-Lab"
    with pytest.raises(SettingsError, match=rf"w_plus.age: there is no direction 'age' in .*w_directions. {where}"):
        w_plus_of(root, request_of, age=1.0)
    folder = directions(root)
    cases = {"emotion_hapy": f"'emotion_hapy' in .*Did you mean 'latent_directions/emotion_happy'.*{where}"}
    cases |= dict.fromkeys(("../smile", "gan_space/ffhq_pca", "a/b/c"), "there is no direction")
    for name, words in cases.items():
        with pytest.raises(SettingsError, match=f"w_plus.direction: .*{words}"):
            w_plus_of(root, request_of, direction=name, amount=1.0)
    np.save(folder / "latent_directions" / "odd.npy", np.zeros((3, 4)))
    with pytest.raises(SettingsError, match=r"w_plus\.direction: odd\.npy is no direction among latents"):
        w_plus_of(root, request_of, direction="odd", amount=1.0)
    torch.save({"mean": torch.zeros(3)}, folder / "gan_space" / "ffhq_pca.pt")
    with pytest.raises(SettingsError, match=r"w_plus\.direction: .*gan_space holds no components"):
        w_plus_of(root, request_of, direction="bald", amount=1.0)


def test_moves_are_for_w_plus_adapters(root: Path, request_of: Request) -> None:
    put(root, tiny.family_tensors("ip-adapter"))
    made = Session([root], True).prepare(request_of(w_plus={"age": 1.0}), SCENE)
    assert "StyleGAN moves do nothing here: they are for W+ adapters." in made.explanation.notes
