"""PhotoMaker, ConsistentID and personalised identities, from photos to a UNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.text.text_side import LearnedChunk, Positions
from dp_adapter.core.types import Row
from dp_adapter.errors import DPAdapterError, SettingsError
from dp_adapter.hosts.attach import diffusers
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.identity.crops.face_parts import PARTS, part_pictures
from dp_adapter.identity.encoders.clip import preprocess
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.session import Prepared, Scene, Session
from dp_adapter.weights.families import personal
from dp_adapter.weights.families.personal import Personal
from dp_adapter.weights.families.photomaker import PhotoMakerEncoder
from tests import tiny
from tests.identity.encoders.test_encoder_pool import save_tower
from tests.session.conftest import Request
from tests.session.test_saved import small_pack
from tests.weights import fused_files as files
from tests.weights.numbers import numbers, weights

SDXL, SD15 = Scene("sdxl", 128, 128), Scene("sd15", 128, 128)
PAIR = (Row("cond"), Row("uncond"))
FULL: Mapping[str, Any] = {"regions": [{"kind": "full"}]}


@dataclass(frozen=True)
class Words:
    """The person's word at the same place in every text."""

    places: Positions
    learned_chunks: tuple[LearnedChunk, ...] = ()

    def positions(self, row: Row, person: int) -> Positions:
        return self.places if person == 0 else ()


@pytest.fixture
def root(models: Path) -> Path:
    """The models folder without adapters."""
    (models / "dp_adapter" / "untrained.safetensors").unlink()
    return models


def photomaker(root: Path, version: Literal["v1", "v2"] = "v1") -> str:
    tensors = files.photomaker_tensors(version, tiny.CONTEXT, 20)
    return tiny.write(root / "dp_adapter" / f"photomaker-{version}.bin", tensors, "zip").name


def ada(root: Path, base: Base = "sd15") -> str:
    net = Personal(numbers("face", (24,)), numbers("anchor", (2, tiny.CONTEXT)))
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items() if key.count(".")}
    del shapes["adapter.beta"]
    net.load_state_dict(weights(shapes, "ada."), strict=False)
    personal.save(root / "dp_adapter" / "ada.safetensors", net, base, "Ada", {})
    return "ada.safetensors"


def made(prepared: Prepared, base: Base, words: Positions, timestep: float) -> Tensor:
    """What the tiny UNet makes of it."""
    unet = tiny.unet(base)
    with diffusers.attach(unet, prepared.injection, PAIR, words=Words(words)):
        return tiny.call(unet, tiny.inputs(base, PAIR), timestep)


def expected(base: Base, context: Tensor, lora: Mapping[str, Tensor], timestep: float) -> Tensor:
    """The UNet with the LoRA added by its names, and another context in the first row."""
    unet = tiny.unet(base)
    for key, down in lora.items():
        if ".down." in key:
            path, linear = key.removeprefix("unet.").removesuffix("_lora.down.weight").split(".processor.")
            module = unet.get_submodule(f"{path}.{linear}.0" if linear == "to_out" else f"{path}.{linear}")
            assert isinstance(module, nn.Linear)
            module.weight += lora[key.replace(".down.", ".up.")] @ down
    given = tiny.inputs(base, PAIR)
    given.context[0] = context
    return tiny.call(unet, given, timestep)


def test_photomaker_from_a_photo_to_the_unet(root: Path, request_of: Request, portrait: Path) -> None:
    photomaker(root)
    prepared = Session([root], True).prepare(request_of(**FULL), SDXL)
    (identity,) = prepared.injection.identities
    assert prepared.injection.active and identity.text is not None and identity.text.tokens == 1
    assert (prepared.explanation.family, prepared.explanation.span) == ("photomaker", (0.2, 1.0))
    net = identity.adapter.projection
    assert isinstance(net, PhotoMakerEncoder)
    embeds = net.embed(torch.as_tensor(preprocess(load_picture(portrait), 28)), None)[0]
    context = tiny.inputs("sdxl", PAIR).context[0].clone()
    plain = context.clone()
    context[2:3] = net.fuse_module(context[2:3], embeds)
    lora = files.photomaker_lora()
    for timestep, text in ((400.0, context), (900.0, plain)):  # text alone for the first fifth
        out = made(prepared, "sdxl", (2,), timestep)
        torch.testing.assert_close(out, expected("sdxl", text, lora, timestep), atol=2e-5, rtol=1e-4)
    assert (expected("sdxl", context, lora, 400.0) - expected("sdxl", plain, lora, 400.0)).abs().max() > 1e-2


def test_the_tower_looks_at_photos_once(root: Path, request_of: Request, people: list[Path]) -> None:
    name = photomaker(root)
    session = Session([root], True)
    net = session.checkpoint(name).adapter.projection
    looks: list[int] = []
    net.get_submodule("vision_model").register_forward_hook(lambda _net, given, _out: looks.append(len(given[0])))
    for weight in (0.8, 0.5):
        prepared = session.prepare(request_of(*people[:2], weight=weight), SDXL)
    (identity,) = prepared.injection.identities
    assert identity.text is not None and identity.text.tokens == 2
    assert looks == [1, 1]
    session.prepare(request_of(*people[:3]), SDXL)
    assert looks == [1, 1, 1], "only the new one"
    session.release()
    session.prepare(request_of(people[0]), SDXL)
    assert looks == [1, 1, 1], "another checkpoint by now"


def test_photos_are_not_mixed(root: Path, request_of: Request, people: list[Path]) -> None:
    photomaker(root)
    session = Session([root], True)
    with pytest.raises(SettingsError, match=r"combine: 'average' would mix photos, and PhotoMaker v1 looks at each"):
        session.prepare(request_of(*people[:2], combine="average"), SDXL)
    (identity,) = session.prepare(request_of(*people[:2], combine="best"), SDXL).injection.identities
    assert identity.text is not None and identity.text.tokens == 1


def test_photomaker_v2_looks_at_the_face_too(root: Path, request_of: Request, people: list[Path]) -> None:
    small_pack(root, "buffalo_l")
    photomaker(root, "v2")
    prepared = Session([root], True).prepare(request_of(*people[:2], **FULL), SDXL)
    (identity,) = prepared.injection.identities
    assert identity.text is not None and identity.text.tokens == 4
    assert prepared.explanation.persons[0].encoders == ("the model's own CLIP", "arcface/buffalo_l/raw")
    assert torch.isfinite(made(prepared, "sdxl", (1, 2, 3, 4), 400.0)).all()


# ConsistentID.


def test_consistentid_from_a_photo_to_the_unet(
    root: Path, request_of: Request, portrait: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pack(root, "buffalo_l")
    monkeypatch.setattr(tiny, "FACE", 512)
    save_tower(root / "clip_vision" / "tower", tiny.CLIP, tiny.CLIP)
    tensors = files.consistentid_tensors("sd15", tiny.CONTEXT)
    tiny.write(root / "dp_adapter" / "consistentid.bin", tensors, "zip")
    session = Session([root], True)
    prepared = session.prepare(request_of(**FULL), SD15)
    (identity,) = prepared.injection.identities
    assert identity.text is not None and 4 <= identity.text.tokens <= len(PARTS)
    assert identity.tokens.cond.shape == (4, tiny.CONTEXT)
    picture = load_picture(portrait)
    face = session.encoders.arcface("buffalo_l", normed=True).embed(
        picture, session.encoders.pack("buffalo_l").detect(picture)[0]
    )
    tower = session.encoders.clip(hidden=tiny.CLIP)
    net = identity.adapter.projection.get_submodule("tokens")
    cond = net(torch.as_tensor(face)[None], tower.encode(picture).hidden, False)[0]
    torch.testing.assert_close(identity.tokens.cond, cond, atol=1e-5, rtol=1e-4)
    assert prepared.injection.schedule.start == 0.0
    words = tuple(range(1, 1 + identity.text.tokens))
    early, late = (made(prepared, "sd15", words, timestep) for timestep in (500.0, 300.0))
    unfused = [made(prepared, "sd15", (), timestep) for timestep in (500.0, 300.0)]
    assert torch.equal(early, unfused[0]), "the parts join after 30 of 50 steps"
    assert (late[0] - unfused[1][0]).abs().max() > 1e-3
    assert torch.equal(late[1], unfused[1][1])


def test_parts_of_a_face(portrait: Path, portrait_session: Session) -> None:
    picture = load_picture(portrait)
    face = portrait_session.encoders.yunet.detect(picture)[0]
    masks = portrait_session.encoders.parser.parse(picture, face)
    shown = part_pictures(picture, face, masks)
    assert len(shown) == len(PARTS) == 5
    areas = dict(zip(PARTS, (0 if one is None else int((one.sum(-1) > 0).sum()) for one in shown), strict=True))
    assert areas["face"] > 5 * areas["mouth"] > 0 and areas["nose"] > 0
    eyes = shown[1]
    assert eyes is not None
    columns = np.argwhere(eyes.sum(-1) > 0)[:, 1]
    assert columns.max() < face.points[2, 0], "one eye, left of the nose"
    nothing = {part: np.zeros_like(mask) for part, mask in masks.items()}
    assert part_pictures(picture, face, nothing) == (None,) * 5


# Personalised identities.


def test_a_personalised_identity_needs_no_photo(root: Path, request_of: Request) -> None:
    name = ada(root)
    session = Session([root], True)
    request = request_of().replace(references=(), model=name)
    prepared = session.prepare(request.replace(regions=request_of(**FULL).regions), SD15)
    (identity,) = prepared.injection.identities
    assert prepared.injection.active and prepared.explanation.family == "personal"
    person = identity.adapter.projection
    assert isinstance(person, Personal)
    with torch.no_grad():
        context = person(tiny.inputs("sd15", PAIR).context[0])
    out = made(prepared, "sd15", (), 400.0)
    torch.testing.assert_close(out, expected("sd15", context, {}, 400.0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(out[0], tiny.call(tiny.unet("sd15"), tiny.inputs("sd15", PAIR), 400.0)[0], atol=1e-3)
    assert session.prepare(request, SD15).injection.active, "with an automatic region too"


def test_a_model_that_takes_photos_still_asks_for_one(root: Path, request_of: Request) -> None:
    name = photomaker(root)
    with pytest.raises(SettingsError, match="there is no photo"):
        Session([root], True).prepare(request_of().replace(references=(), model=name), SDXL)


def test_a_personalised_identity_beside_a_model(root: Path, request_of: Request) -> None:
    model, name = photomaker(root), ada(root, "sdxl")
    session = Session([root], True)
    request = request_of(model=model, **FULL)
    alone = session.prepare(request, SDXL).injection.identities[0].text
    both = session.prepare(request_of(model=model, text_side={"personal": name}, **FULL), SDXL).injection.identities[0]
    assert alone is not None and both.text is not None and both.text.tokens == 1
    person = session.checkpoint(name).adapter.projection
    assert isinstance(person, Personal)
    context = tiny.inputs("sdxl", PAIR).context[0]
    with torch.no_grad():
        torch.testing.assert_close(both.text.fuse(context, (2,)), person(alone.fuse(context, (2,))))


@pytest.mark.parametrize(
    ("base", "personal_name", "words"),
    [
        ("sd15", "ada.safetensors", r"text_side\.personal: ada.safetensors is made for SD1\.5, the loaded"),
        ("sdxl", "photomaker-v1.bin", r"text_side\.personal: .* is PhotoMaker v1, not a personalised identity"),
        ("sdxl", "bob", "There is no model 'bob'"),
    ],
)
def test_personal_files_that_do_not_go_with_it(
    root: Path, request_of: Request, base: Base, personal_name: str, words: str
) -> None:
    model = photomaker(root)
    ada(root, base)
    request = request_of(model=model, text_side={"personal": personal_name}, **FULL)

    with pytest.raises(DPAdapterError, match=words):
        Session([root], True).prepare(request, SDXL)
