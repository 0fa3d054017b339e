"""The checkpoint families through a whole ``prepare``, with a tiny random CLIP tower."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from dp_adapter.errors import CatalogError, MissingDependencyError, SettingsError
from dp_adapter.identity.encoders.clip import ClipVision
from dp_adapter.identity.encoders.transface import TransFace
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import norm_crop
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.session import Prepared, Scene, Session
from tests import tiny
from tests.identity.encoders.test_encoder_pool import save_tower
from tests.session.conftest import SCENE, Request

HAS_INSIGHTFACE = importlib.util.find_spec("insightface") is not None
TILES = 5  # tokens of the tower: 2 x 2 patches and the class token


def prepared(root: Path, family: str, request: Request, **fields: object) -> Prepared:
    put(root, family)
    return Session([root], True).prepare(request(**fields), SCENE)


def put(root: Path, family: str, name: str = "adapter", base: str = "sd15") -> Path:
    tensors = tiny.family_tensors(family, base)  # type: ignore[arg-type]
    return tiny.write(root / "dp_adapter" / f"{name}.safetensors", tensors, "safetensors")


@pytest.mark.parametrize(
    ("family", "fields", "tokens", "aligned"),
    [
        ("ip-adapter", {}, 4, False),
        ("ip-adapter-plus", {"variant": "plus"}, 4, False),
        ("ip-adapter-plus", {"variant": "composition"}, 4, False),
        ("ip-adapter-plus", {"variant": "plus-face"}, 4, True),
        ("ip-adapter-full-face", {}, TILES, True),
    ],
)
def test_clip_families(
    root: Path, request_of: Request, portrait: Path, family: str, fields: dict[str, str], tokens: int, aligned: bool
) -> None:
    made = prepared(root, family, request_of, **fields)
    (identity,) = made.injection.identities
    assert made.injection.active and made.explanation.persons[0].tokens == len(identity.tokens.cond) == tokens
    assert made.explanation.family == fields.get("variant", family)
    picture = load_picture(portrait)
    crop = norm_crop(picture, YuNet().detect(picture)[0].points, 224) if aligned else picture
    tower = ClipVision(root / "clip_vision" / "tower")
    seen, blank = tower.encode(crop), tower.zeros()
    net = identity.adapter.projection
    whole = family == "ip-adapter"
    expected = net(seen.image_embeds if whole else seen.hidden).flatten(0, -2)
    black = net(torch.zeros_like(seen.image_embeds) if whole else blank.hidden).flatten(0, -2)
    torch.testing.assert_close(identity.tokens.cond, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(identity.tokens.uncond, black, atol=1e-5, rtol=1e-4)


def test_what_the_keys_cannot_tell_is_asked_once(root: Path, request_of: Request) -> None:
    path = put(root, "ip-adapter-plus", "ip-adapter-plus-face_sd15")
    session = Session([root], True)
    with pytest.raises(
        SettingsError, match=r"variant: .* cannot tell whether it is plus-face or plus or comp"
    ) as caught:
        session.prepare(request_of(), SCENE)
    assert caught.value.nearest == "plus-face" and "its name suggests 'plus-face'" in str(caught.value)
    with pytest.raises(SettingsError, match="is not 'instantid'; by its keys it is plus-face or plus or composition"):
        session.prepare(request_of(variant="instantid"), SCENE)
    with pytest.raises(SettingsError, match="cannot tell"):
        session.prepare(request_of(), SCENE)  # a wrong answer is not kept
    assert session.prepare(request_of(variant="plus"), SCENE).explanation.family == "plus"
    renamed = path.rename(path.with_name("something else.safetensors"))
    for later in (session, Session([root], True)):
        assert later.prepare(request_of(model=renamed.name), SCENE).explanation.family == "plus"
    assert session.prepare(request_of(variant="composition"), SCENE).explanation.family == "composition"
    assert session.prepare(request_of(), SCENE).explanation.family == "composition", "the last word counts"
    other = tiny.family_tensors("ip-adapter-plus", seed=99)
    tiny.write(renamed, other, "safetensors")
    with pytest.raises(SettingsError, match="cannot tell"):
        session.prepare(request_of(), SCENE)


def test_a_missing_tower_is_said(root: Path, request_of: Request) -> None:
    import shutil

    shutil.rmtree(root / "clip_vision")
    with pytest.raises(CatalogError, match=r"No CLIP vision encoder with projection width 40.*models get clip-vit-h"):
        prepared(root, "ip-adapter", request_of)
    save_tower(root / "clip_vision" / "wide", 48, 48)
    with pytest.raises(CatalogError, match=r"seen: wide \(hidden 48, projection 48\)"):
        prepared(root, "ip-adapter", request_of)


def test_several_photos_of_clip_families(root: Path, request_of: Request, portrait: Path, tmp_path: Path) -> None:
    from PIL import Image

    flipped = tmp_path / "flipped.png"
    Image.fromarray(np.ascontiguousarray(load_picture(portrait)[:, ::-1])).save(flipped)
    put(root, "ip-adapter-plus")
    session = Session([root], True)
    sizes = {
        how: len(
            session.prepare(request_of(portrait, flipped, variant="plus", combine=how), SCENE)
            .injection.identities[0]
            .tokens.cond
        )
        for how in ("auto", "average", "best", "concatenate")
    }
    assert sizes == {"auto": 4, "average": 4, "best": 4, "concatenate": 8}


@pytest.mark.parametrize("first", [False, True])
def test_fact(root: Path, request_of: Request, portrait: Path, first: bool) -> None:
    patches = 16
    tensors = tiny.first_fact_tensors(patches) if first else tiny.fact_tensors()
    tiny.write(root / "dp_adapter" / "adapter.ckpt", tensors, "zip")
    session = Session([root], True)
    with pytest.raises(
        CatalogError,
        match=r"TransFace-S face encoder is needed and was not found\. .*'dp-adapter models get transface-s'.* put "
        r"ms1mv2_model_TransFace_S\.pt into .*/models/.*Its licence: Apache-2\.0",
    ):
        session.prepare(request_of(), SCENE)
    file = tiny.write(root / "dp_adapter" / "ms1mv2_model_TransFace_S.pt", tiny.transface_tensors(), "zip")
    made = session.prepare(request_of(), SCENE)  # the encoder beside the adapters is no second adapter
    (identity,) = made.injection.identities
    assert made.explanation.blend == "gated" and made.explanation.persons[0].encoders == (
        f"transface/{tiny.FACE}x2x16",
    )
    picture = load_picture(portrait)
    face = YuNet().detect(picture)[0]
    seen = TransFace(file).encode(picture, face, session.encoders.parser.parse(picture, face))
    net = identity.adapter.projection
    torch.testing.assert_close(identity.tokens.cond, net(seen)[0], atol=1e-5, rtol=1e-4)
    blank = seen if first else torch.zeros_like(seen)
    torch.testing.assert_close(identity.tokens.uncond, net(blank)[0], atol=1e-5, rtol=1e-4)
    two = session.prepare(request_of(portrait, portrait), SCENE).injection.identities[0].tokens.cond
    assert len(two) == 2 * len(identity.tokens.cond), "photo by photo"


@pytest.mark.parametrize("variant", ["faceid-plus", "faceid-plusv2"])
def test_faceid_plus_of_sd15_is_asked_about(root: Path, request_of: Request, variant: str) -> None:
    put(root, "faceid-plus", f"ip-adapter-{variant}_sd15")
    with pytest.raises(SettingsError, match=f"its name suggests '{variant}'"):
        Session([root], True).prepare(request_of(), SCENE)


@pytest.mark.skipif(HAS_INSIGHTFACE, reason="insightface is installed")
@pytest.mark.parametrize(
    ("family", "base", "fields"),
    [
        ("faceid", "sd15", {}),
        ("faceid-portrait", "sd15", {}),
        ("faceid-plus", "sd15", {"variant": "faceid-plusv2"}),
        ("faceid-plus", "sdxl", {}),
        ("faceid-sequence", "sd15", {"variant": "instantid"}),
    ],
)
def test_arcface_families_say_what_to_install(
    root: Path, request_of: Request, family: str, base: str, fields: dict[str, str]
) -> None:
    put(root, family, base=base)
    session = Session([root], True)
    with pytest.raises(
        MissingDependencyError, match=r"ArcFace identity needs .*'insightface'.*pip install insightface"
    ):
        session.prepare(request_of(**fields), Scene("sdxl" if base == "sdxl" else "sd15", 128, 128))
