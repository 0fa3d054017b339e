"""Errors and joins of ``Session.prepare``."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from dp_adapter.core.adapter import SiteAdapter
from dp_adapter.core.blend import FeatureBlending
from dp_adapter.errors import (
    CatalogError,
    DPAdapterError,
    FaceError,
    IdentityError,
    PictureError,
    SettingsError,
    WeightsError,
)
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.session import Scene, Session
from dp_adapter.settings import Settings
from dp_adapter.weights import formats
from dp_adapter.weights.families import own_adapter
from tests import tiny
from tests.hosts.attach.test_res_adapter import write as write_res_adapter
from tests.session.conftest import SCENE, Request

BOX = [{"kind": "box", "box": {"x0": 0.25, "y0": 0.25, "x1": 0.75, "y1": 0.75}}]


def test_a_portrait(portrait_session: Session, request_of: Request) -> None:
    prepared = portrait_session.prepare(request_of(), SCENE)
    (identity,) = prepared.injection.identities
    assert prepared.injection.active and identity.weight == 0.8 and identity.is_regional
    assert identity.tokens.cond.shape == identity.tokens.uncond.shape == (4, identity.adapter.site(0).context)
    assert torch.isfinite(identity.tokens.cond).all()
    (person,) = prepared.explanation.persons
    assert person.encoders == ("sface",) and person.tokens == 4 and person.photos[0].chosen == 0
    assert (
        prepared.explanation.form == "folded"
        and prepared.explanation.form_mb > 0
        and prepared.explanation.blend == "add"
    )


def test_switched_off_needs_neither_photo_nor_model(tmp_path: Path) -> None:
    for settings in (Settings(enabled=False), Settings(enabled=False, model="absent", mode="full_body")):
        prepared = Session([tmp_path], False).prepare(settings, SCENE)
        assert not prepared.injection.active and not prepared.explanation.active
        assert prepared.explanation.lines() == ["The adapter was off: the picture is the base model's own."]


Error = TypeVar("Error", bound=DPAdapterError)


def refused(kind: type[Error], session: Session, settings: Settings, *words: str) -> Error:
    with pytest.raises(kind) as caught:
        session.prepare(settings, SCENE)
    assert type(caught.value) is kind
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value)) < 500
    return caught.value


def test_refusals_of_photos(portrait_session: Session, request_of: Request, faceless: Path, tmp_path: Path) -> None:
    session = portrait_session
    refused(SettingsError, session, Settings(), "references", "no photo")
    refused(PictureError, session, request_of("absent.png"), "references[0].image", "no file 'absent.png'")
    refused(PictureError, session, request_of("https://a.org/b.png"), "never fetched")
    refused(PictureError, session, request_of("data:image/png;base64,QUJD" + "A" * 80), "references[0].image")
    refused(IdentityError, session, request_of("identity:Anna"), "references[0].image", "no saved identity 'Anna'")
    refused(PictureError, session, request_of("photo:0123456789abcdef"), "references[0].image", "Drop it again")
    refused(FaceError, session, request_of(faceless), "references[0]", "No face")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    refused(PictureError, session, request_of(text), "text.png", "not a picture")
    refused(FaceError, session, request_of(face={"min_size": 300}), "smaller than 300 px")
    refused(FaceError, session, request_of(face={"choice": "index", "index": 1}), "Face 2", "Choose face 1")


def test_the_second_photo_is_named(portrait_session: Session, request_of: Request, portrait: Path) -> None:
    refused(PictureError, portrait_session, request_of(portrait, "absent.png"), "references[1].image", "absent.png")


def test_a_face_to_look_for_must_be_there(portrait_session: Session, request_of: Request, faceless: Path) -> None:
    """Not the photo is at fault, so going on without it would be wrong."""
    for no_face in ("stop", "continue"):
        like = {"choice": "like", "like": str(faceless)}
        settings = request_of(face=like, no_face=no_face)
        assert refused(SettingsError, portrait_session, settings, "no face").field == "face.like"
        own = request_of({"image": settings.references[0].image, "face": like}, no_face=no_face)
        refused(SettingsError, portrait_session, own, "references[0].face.like")
    refused(IdentityError, portrait_session, request_of(face={"choice": "like", "like": "identity:Anna"}), "face.like")
    refused(PictureError, portrait_session, request_of(face={"choice": "like", "like": "absent.png"}), "face.like")


def test_over_a_network_nothing_on_disk_is_named(models: Path, portrait: Path, request_of: Request) -> None:
    session = Session([models], paths_allowed=False)
    refused(PictureError, session, request_of(), "Paths are not read")
    photo = "data:image/png;base64," + base64.b64encode(portrait.read_bytes()).decode()
    outside = models.parent / "outside.safetensors"
    outside.hardlink_to(models / "dp_adapter" / "untrained.safetensors")
    for name in (str(outside), "../outside.safetensors", "../../outside", "dp_adapter/untrained.safetensors"):
        refused(WeightsError, session, request_of(photo, model=name), "There is no model")
    mask = [{"kind": "mask", "mask": str(portrait)}]
    refused(PictureError, session, request_of(photo, regions=mask), "regions[0].mask", "Paths are not read")
    like = {"choice": "like", "like": str(portrait)}
    refused(PictureError, session, request_of(photo, face=like), "face.like", "Paths are not read")
    assert session.prepare(request_of(photo, model="untrained"), SCENE).injection.active
    assert Session([models], True).prepare(request_of(model=str(outside)), SCENE).injection.active


def test_the_base_must_fit(portrait_session: Session, request_of: Request) -> None:
    with pytest.raises(SettingsError, match=r"model: untrained.safetensors is made for SD1.5, the .* is SDXL"):
        portrait_session.prepare(request_of(), Scene("sdxl", 128, 128))


def test_damaged_adapters_and_then_a_good_one(session: Session, models: Path, request_of: Request) -> None:
    good = (models / "dp_adapter" / "untrained.safetensors").read_bytes()
    path = models / "dp_adapter" / "mine.safetensors"
    for content in (b"", good[:5000], b"PK\3\4 no zip", b"\x80\x02cos\nsystem\n."):
        path.write_bytes(content)
        refused(WeightsError, session, request_of(model="mine"), "mine.safetensors")
    path.write_bytes(good)
    assert session.prepare(request_of(model="mine"), SCENE).injection.active


def test_blend_and_form_must_go_with_the_weights(portrait_session: Session, request_of: Request) -> None:
    error = refused(SettingsError, portrait_session, request_of(blend="gated"), "blend", "'gated'")
    assert error.nearest == "auto"
    folded = {"performance": {"form": "folded"}}
    for fields in ({"blend": "norm"}, {"text_emphasis": 0.5}):
        refused(SettingsError, portrait_session, request_of(**fields, **folded), "performance.form", "Use 'auto'.")
        assert portrait_session.prepare(request_of(**fields), SCENE).explanation.form == "plain"
        half = {"performance": {"form": "half"}}
        refused(SettingsError, portrait_session, request_of(**fields, **half), "performance.form", "'half'")
    for form in ("folded", "half"):
        told = portrait_session.prepare(request_of(performance={"form": form}), SCENE)
        assert told.injection.form_used == told.explanation.form == form
    plain = portrait_session.prepare(request_of(performance={"form": "plain"}), SCENE)
    assert not plain.injection.folded and plain.explanation.form == "plain"


def test_values_without_effect_are_said(session: Session, models: Path, request_of: Request) -> None:
    def notes(**fields: Any) -> str:
        return " ".join(session.prepare(request_of(**fields), SCENE).explanation.notes)

    assert "same as 'add'" in notes(blend="orthogonal_v2") and "same as 'add'" not in notes(blend="orthogonal")
    assert "gate" not in notes(model="untrained", gate={"up": 2.0}), "without a trained gate they act"
    adapter = formats.read(models / "dp_adapter" / "untrained.safetensors").adapter
    for site in adapter.sites:
        assert isinstance(site, SiteAdapter)
        site.blending = FeatureBlending(site.width, 2)
    own_adapter.save(models / "dp_adapter" / "trained.safetensors", adapter, "sd15", "sface", {})
    assert "trained.safetensors brings a trained gate" in notes(model="trained", gate={"up": 2.0})
    assert "trained gate" not in notes(model="trained")


def test_gated_weights_take_no_other_blend(session: Session, models: Path, request_of: Request) -> None:
    tiny.write(models / "dp_adapter" / "fact.safetensors", tiny.fact_tensors(), "safetensors")
    refused(CatalogError, session, request_of(model="fact"), "TransFace-S face encoder is needed and was not found")
    (models / "transface").mkdir()
    tiny.write(models / "transface" / "ms1mv2_model_TransFace_S.pt", tiny.transface_tensors(), "zip")
    error = refused(SettingsError, session, request_of(model="fact", blend="add"), "blend", "'add'")
    assert error.nearest == "auto"
    assert session.prepare(request_of(model="fact"), SCENE).explanation.blend == "gated"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"weight": 0.0}, "Its weight is 0."),
        ({"curve": "0@0, 0@1"}, "Its weight curve is 0 everywhere."),
        ({"regions": [BOX[0] | {"weight": 0.0}]}, "Its weight is 0."),
        ({"regions": [{"kind": "mask", "mask": "black.png"}]}, "Its region covers nothing of the picture."),
    ],
)
def test_what_switches_it_off_is_said(
    portrait_session: Session,
    request_of: Request,
    fields: dict[str, Any],
    why: str,
    tmp_path: Path,
    portrait: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("black.png")
    prepared = portrait_session.prepare(request_of(portrait, **fields), SCENE)
    assert not prepared.injection.active and not prepared.explanation.active
    assert prepared.explanation.lines() == ["The adapter was off: the picture is the base model's own.", why]


def test_the_span_starts_late_where_no_region_is_known(portrait_session: Session, request_of: Request) -> None:
    def span(**fields: Any) -> tuple[float, float]:
        prepared = portrait_session.prepare(request_of(**fields), SCENE)
        assert (prepared.injection.schedule.start, prepared.injection.schedule.end) == prepared.explanation.span
        return prepared.explanation.span

    whole = {"fallback": "full"}
    assert span(tracking=whole) == span(tracking={"sources": []}) == (0.15, 1.0)
    assert span(regions=BOX) == span(regions=[{"kind": "full"}]) == (0.0, 1.0)
    assert span() == (0.0, 1.0), "it acts nowhere before a face is found"
    assert span(regions=[*BOX, {"kind": "auto"}], tracking=whole) == (0.15, 1.0), "one of the two is not known"
    assert span(span={"start": 0.4, "end": 0.9}) == span(span={"start": 0.4, "end": 0.9}, regions=BOX) == (0.4, 0.9)
    assert span(span={"end": 0.1}, tracking=whole) == (0.1, 0.1), "not an empty span"


def test_schedule_gate_and_text_controls_arrive(portrait_session: Session, request_of: Request) -> None:
    settings = request_of(
        curve="0.5@0.1, 1@0.6",
        levels={"down": 0.5},
        gate={"middle": 3.0},
        text_weight=0.7,
        text_emphasis=0.3,
        strict_text_region=True,
    )
    injection = portrait_session.prepare(settings, SCENE).injection
    assert injection.schedule.curve == ((0.1, 0.5), (0.6, 1.0))
    assert injection.schedule.levels == {"down": 0.5, "middle": 1.0, "up": 1.0}
    assert injection.powers == {"down": 1.0, "middle": 3.0, "up": 0.75}
    assert (injection.text.weight, injection.text.emphasis, injection.text.strict) == (0.7, 0.3, True)


def test_what_is_said_is_plain_json_and_sentences(portrait_session: Session, request_of: Request) -> None:
    scene = replace(SCENE, inits=(load_picture(Path(request_of().references[0].image)),))
    explanation = portrait_session.prepare(request_of(), scene).explanation
    text = json.dumps(explanation.to_dict(), allow_nan=False)
    told = json.loads(text)
    assert told["persons"][0]["photos"][0]["faces"] == 1 and told["span"] == [0.0, 1.0]
    assert request_of().references[0].image not in text and "secret" not in text
    lines = explanation.lines()
    assert "untrained.safetensors" in lines[0] and "1 photo(s)" in lines[1] and "init picture" in lines[1]
    assert all(line.strip() and "\n" not in line for line in lines)


def test_a_size_companion_comes_along(session: Session, models: Path, request_of: Request) -> None:
    folder = write_res_adapter(models / "dp_adapter" / "resadapter_v2_sd1.5", "sd15")
    settings = request_of(model="untrained.safetensors", companion={"model": folder.name, "weight": 0.5})
    companion = session.prepare(settings, SCENE).injection.companion
    assert companion is not None and companion[1] == 0.5 and len(companion[0].convs) == 6
    assert session.prepare(request_of(model="untrained.safetensors"), SCENE).injection.companion is None
    absent = request_of(model="untrained.safetensors", companion={"model": "absent"})
    refused(WeightsError, session, absent, "no model 'absent'")
    write_res_adapter(models / "dp_adapter" / "other", "sdxl")
    other = request_of(model="untrained.safetensors", companion={"model": "other"})
    refused(SettingsError, session, other, "companion.model", "other is made for SDXL")
