"""Regions as masks in picture space."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dp_adapter.core.regions.region_masks import GATE_POWERS, gains, on_grid
from dp_adapter.core.types import Grid
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.session import Crop, Prepared, Scene, Session
from dp_adapter.session.regions.face_mask import add_features, skin_mask
from dp_adapter.session.regions.requested_regions import RequestedRegion, RequestedRegions, greatest_weight, unite
from dp_adapter.settings import Settings
from dp_adapter.settings.sections import Parts
from tests.session.conftest import SCENE, Request

LEFT = 96  # where the head is cut out of the portrait
HALF = {"kind": "box", "box": {"x0": 0.5}}


@pytest.fixture
def request_of(request_of: Request) -> Request:
    """Regions that stay where they are; those that move are in test_tracker.py."""

    def build(*photos: Any, **fields: Any) -> Settings:
        tracking = {"sources": ["init"], **fields.pop("tracking", {})}
        return request_of(*photos, tracking=tracking, **fields)

    return build


def mask_of(prepared: Prepared) -> Tensor:
    (identity,) = prepared.injection.identities
    assert identity.region is not None
    assert identity.region.dtype == torch.float32 and identity.region.ndim == 3
    assert float(identity.region.min()) >= 0 and float(identity.region.max()) <= 1
    return identity.region


def test_a_mask_on_a_transparent_layer(portrait_session: Session, request_of: Request, tmp_path: Path) -> None:
    layer = np.full((64, 64, 4), 255, np.uint8)
    layer[:, 32:, 3] = 0
    Image.fromarray(layer).save(tmp_path / "mask.png")
    regions = [{"kind": "mask", "mask": str(tmp_path / "mask.png")}]
    mask = mask_of(portrait_session.prepare(request_of(regions=regions), SCENE))
    assert mask[..., :64].min() == 1 and mask[..., 64:].max() == 0


@pytest.fixture
def with_face(portrait: Path) -> Scene:
    """An img2img scene whose init picture is the portrait's head, in its own scale."""
    return Scene("sd15", 256, 256, inits=(np.ascontiguousarray(load_picture(portrait)[:256, LEFT : LEFT + 256]),))


def face_mask(session: Session, settings: Settings, scene: Scene) -> Tensor:
    return mask_of(session.prepare(settings, scene))[0]


def test_a_box(portrait_session: Session, request_of: Request) -> None:
    prepared = portrait_session.prepare(request_of(regions=[HALF]), SCENE)
    mask = mask_of(prepared)
    assert mask.shape == (1, 128, 128) and mask[..., 64:].min() == 1 and mask[..., :64].max() == 0
    (person,) = prepared.explanation.persons
    assert (person.region, person.coverage) == ("a box", 0.5)


def test_full(portrait_session: Session, request_of: Request) -> None:
    prepared = portrait_session.prepare(request_of(regions=[{"kind": "full", "weight": 0.5}]), SCENE)
    (identity,) = prepared.injection.identities
    assert identity.region is None and identity.weight == pytest.approx(0.4)
    assert prepared.explanation.persons[0].coverage == 1.0


def test_a_drawn_mask_of_another_size(portrait_session: Session, request_of: Request, tmp_path: Path) -> None:
    drawn = np.zeros((300, 200), np.uint8)
    drawn[:150] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    regions = [{"kind": "mask", "mask": str(tmp_path / "mask.png")}]
    scene = replace(SCENE, width=192, height=128)
    prepared = portrait_session.prepare(request_of(regions=regions), scene)
    mask = mask_of(prepared)
    assert mask.shape == (1, 128, 192) and mask[:, :64].min() == 1 and mask[:, 64:].max() == 0
    assert prepared.explanation.persons[0].region == "a drawn mask"


def test_several_regions_of_one_person_are_joined_with_their_weights(
    portrait_session: Session, request_of: Request
) -> None:
    top = {"kind": "box", "box": {"y1": 0.5}, "weight": 0.5}
    prepared = portrait_session.prepare(request_of(regions=[HALF | {"weight": 2.0}, top]), SCENE)
    mask = mask_of(prepared)[0]
    assert prepared.injection.identities[0].weight == pytest.approx(1.6)
    assert mask[:64, :64].eq(0.25).all() and mask[:, 64:].eq(1).all() and mask[64:, :64].eq(0).all()
    assert prepared.explanation.persons[0].region == "a box"
    with_full = portrait_session.prepare(request_of(regions=[{"kind": "full", "weight": 0.5}, HALF]), SCENE)
    mask = mask_of(with_full)[0]
    assert mask[:, :64].eq(0.5).all() and mask[:, 64:].eq(1).all()


def test_what_is_subtracted_is_left_out_softly(portrait_session: Session, request_of: Request) -> None:
    top = {"kind": "box", "box": {"y1": 0.5}, "op": "subtract"}

    def made(*regions: dict[str, Any]) -> Prepared:
        return portrait_session.prepare(request_of(regions=list(regions)), SCENE)

    prepared = made(HALF, top)
    mask = mask_of(prepared)[0]
    assert mask[64:, 64:].eq(1).all() and mask[:64].eq(0).all() and mask[:, :64].eq(0).all()
    assert prepared.explanation.persons[0].region == "a box, without a box"
    assert torch.equal(mask, mask_of(made(top, HALF))[0]), "the order does not matter"
    assert mask_of(made(HALF, top | {"weight": 0.25}))[0][:64, 64:].eq(0.75).all()
    assert mask_of(made(HALF, top | {"weight": 2.0}))[0][:64].eq(0).all()
    soft = mask_of(made(HALF, top | {"feather": 0.05}))[0][:, 100]
    assert 0.4 < float(soft[63:65].mean()) < 0.6 and float(soft[0]) == 0 and float(soft[127]) == 1
    whole = mask_of(made({"kind": "full"}, top))[0]
    assert whole[:64].eq(0).all() and whole[64:].eq(1).all()
    assert not made(HALF, {"kind": "full", "op": "subtract"}).injection.active
    weighed = made(HALF | {"weight": 0.5}, top | {"weight": 0.5})
    assert weighed.injection.identities[0].weight == pytest.approx(0.4), "what is subtracted has no say in the weight"
    assert mask_of(weighed)[0][:64, 64:].eq(0.5).all()


def test_without_an_added_region_the_automatic_one_is_subtracted_from(
    portrait_session: Session, request_of: Request, with_face: Scene
) -> None:
    lower = {"kind": "box", "box": {"y0": 0.5}, "op": "subtract"}
    face = face_mask(portrait_session, request_of(), with_face)
    prepared = portrait_session.prepare(request_of(regions=[lower]), with_face)
    mask = mask_of(prepared)[0]
    assert torch.equal(mask[:128], face[:128]) and mask[128:].eq(0).all() and float(face[128:].sum()) > 0
    assert prepared.explanation.persons[0].region == "face 1 of the init picture, counted from the left, without a box"
    unknown = portrait_session.prepare(request_of(regions=[lower]), SCENE)
    assert mask_of(unknown)[0][:64].eq(1).all() and mask_of(unknown)[0][64:].eq(0).all()
    assert unknown.injection.schedule.start == 0.15, "a box that is left out does not say where the face is"


def test_a_subtracted_automatic_region_leaves_the_face_out(
    portrait_session: Session, request_of: Request, with_face: Scene
) -> None:
    around = [{"kind": "full"}, {"op": "subtract", "grow": 0.2}]
    grown = face_mask(portrait_session, request_of(regions=[{"grow": 0.2}]), with_face)
    assert torch.allclose(face_mask(portrait_session, request_of(regions=around), with_face), 1 - grown)
    painted = replace(with_face, inpaint=np.ones((64, 64), np.float32))
    inpainted = face_mask(portrait_session, request_of(regions=[{}, around[1]]), painted)
    assert torch.allclose(inpainted, 1 - grown), "the inpaint mask without the face"
    (face,) = with_face.inits
    both = replace(with_face, inits=(face, np.ascontiguousarray(face[:, ::-1])))
    batch = mask_of(portrait_session.prepare(request_of(regions=around), both))
    assert batch.shape == (2, 256, 256) and torch.allclose(batch[0], 1 - grown) and not torch.equal(*batch)
    unknown = portrait_session.prepare(request_of(regions=[HALF, around[1]]), SCENE)
    assert mask_of(unknown)[0][:, 64:].eq(1).all(), "nothing is taken for a face that is not known"
    assert unknown.injection.schedule.start == 0.0


def test_regions_join_with_a_face_that_moves() -> None:
    """As a track joins them: one set of regions, another face at every look."""
    size, box = Grid(4, 4), torch.zeros(1, 4, 4)
    box[:, :, :1] = 1
    regions = (
        RequestedRegion(automatic=True, weight=0.5),
        RequestedRegion(mask=box, weight=1.0),
        RequestedRegion(mask=box, subtracted=True),
    )
    faces = torch.zeros(2, 4, 4)
    faces[0, 1], faces[1, 2] = 1, 1
    assert greatest_weight(regions) == 1.0
    joined = unite(regions[:2], lambda _: faces, size)
    assert joined is not None and torch.equal(joined, torch.maximum(box, faces / 2))
    left = unite(regions, lambda _: faces, size)
    assert left is not None and torch.equal(left, faces / 2 * (1 - box))
    nowhere = unite(regions[:1], lambda _: None, size, unknown=0.0)
    assert nowhere is not None and nowhere.eq(0).all()
    assert unite(regions[:1], lambda _: None, size) is None


@pytest.mark.parametrize("size", [64, 256])
def test_grow_and_feather_go_by_the_regions_size(portrait_session: Session, request_of: Request, size: int) -> None:
    """A box of a quarter of the area: its size is half the picture's side."""
    box = {"x0": 0.25, "y0": 0.25, "x1": 0.75, "y1": 0.75}
    scene = replace(SCENE, width=size, height=size)

    def made(**fields: Any) -> Tensor:
        settings = request_of(regions=[{"kind": "box", "box": box, **fields}])
        return mask_of(portrait_session.prepare(settings, scene))[0]

    assert made().sum() == (size // 2) ** 2, "as drawn"
    assert made(grow=0.25).sum() == (size // 2 + 2 * (size // 8)) ** 2
    soft = made(feather=0.125)
    edge = soft[size // 2, size // 4 - 1 : size // 4 + 1].mean()
    assert float(edge) == pytest.approx(0.5, abs=0.02)
    sigma = size // 16
    outside = float(soft[size // 2, size // 4 - sigma])
    assert outside == pytest.approx(0.16, abs=0.06), "one standard deviation out"


def test_the_face_of_the_init_picture(portrait_session: Session, request_of: Request, with_face: Scene) -> None:
    prepared = portrait_session.prepare(request_of(), with_face)
    mask = mask_of(prepared)[0]
    x1, y1, x2, y2 = (round(edge) for edge in prepared.explanation.persons[0].photos[0].box or ())
    x1, x2 = x1 - LEFT, x2 - LEFT
    inside = mask[y1:y2, x1:x2]
    assert inside[20:-20, 20:-20].min() > 0.9 and float(inside.sum() / mask.sum()) > 0.6
    assert mask[:20].max() == 0 and mask[:, :30].max() == 0
    assert "init picture" in prepared.explanation.persons[0].region
    assert prepared.explanation.span[0] == 0.0
    ungrown = face_mask(portrait_session, request_of(tracking={"grow": 0.0, "feather": 0.0}), with_face)
    region = face_mask(portrait_session, request_of(regions=[{"grow": 0.0, "feather": 0.0}]), with_face)
    assert torch.equal(ungrown, region), "the region's own numbers come before the common ones"
    assert ungrown.sum() < mask.sum()


def test_a_part_handed_back_to_the_text_stays_black(
    portrait_session: Session, request_of: Request, with_face: Scene
) -> None:
    whole = face_mask(portrait_session, request_of(), with_face)
    handed_back = {
        part: face_mask(portrait_session, request_of(parts={part: 0.0}), with_face) for part in ("mouth", "eyes")
    }
    for part, without in handed_back.items():
        lost = whole - without
        assert lost.min() >= -1e-6 and float(lost.sum() / whole.sum()) > 0.01
        black = (without < 0.02) & (whole > 0.9)
        assert int(black.sum()) > 20, f"the {part} is closed again by growing"
        # and at the UNet's finest grid, where it matters
        latent = Grid(32, 32)
        fine, before = (gains([mask[None]], latent, 0, "down", GATE_POWERS)[0] for mask in (without, whole))
        assert fine is not None and before is not None and float((before - fine).max()) > 0.5
    half = face_mask(portrait_session, request_of(parts={"mouth": 0.5}), with_face)
    assert float(half.sum()) == pytest.approx(float((whole + handed_back["mouth"]).sum()) / 2, rel=1e-3)


def test_every_part_has_its_weight() -> None:
    """Made-up masks, a row each: what a weight of one half changes, and where parts overlap."""
    names = [info.name for info in fields(Parts)]
    parts = {name: np.zeros((16, 16), np.float32) for name in names}
    inner = ("skin", "brows", "eyes", "glasses", "nose", "mouth")
    for row, name in enumerate(names):
        parts[name][row] = 1
    for name in inner:
        parts["face"] = np.maximum(parts["face"], parts[name])
    parts["face"][names.index("face")] = 0
    plain = Parts().weights()

    def region(weights: dict[str, float]) -> torch.Tensor:
        return add_features(torch.as_tensor(skin_mask(parts, weights))[None], parts, weights)[0]

    whole = region(plain)
    for row, name in enumerate(names[1:], 1):
        changed = region(plain | {name: 0.5})
        rows = {int(r) for r in torch.nonzero((changed - whole).abs().sum(1))}
        assert rows == {row}, name
        assert changed[row].unique().item() == 0.5, name
    assert region(plain | {"face": 0.0}).sum() == 0
    parts["eyes"][names.index("glasses")] = 1
    for part in ("eyes", "glasses"):
        assert region(plain | {part: 0.0})[names.index("glasses")].sum() == 0, "the lower weight counts"


def test_parts_around_the_face(portrait_session: Session, request_of: Request, with_face: Scene) -> None:
    whole = face_mask(portrait_session, request_of(), with_face)
    hair = face_mask(portrait_session, request_of(parts={"hair": 1.0}), with_face)
    assert hair.sum() > 1.3 * whole.sum()
    background = face_mask(portrait_session, request_of(parts={"background": 1.0, "face": 0.0}), with_face)
    assert background[5, 5] > 0.9
    nothing = portrait_session.prepare(request_of(parts={"face": 0.0}), with_face)
    assert not nothing.injection.active


def test_the_inpaint_mask_comes_first(portrait_session: Session, request_of: Request, with_face: Scene) -> None:
    inpaint = np.zeros((128, 64), np.float32)
    inpaint[64:] = 1
    prepared = portrait_session.prepare(request_of(), replace(with_face, inpaint=inpaint))
    mask = mask_of(prepared)[0]
    assert mask[128:].min() == 1 and mask[:128].max() == 0
    assert prepared.explanation.persons[0].region == "the inpaint mask" and prepared.explanation.span[0] == 0
    boxed = portrait_session.prepare(request_of(regions=[HALF]), replace(with_face, inpaint=inpaint))
    assert boxed.explanation.persons[0].region == "a box", "what is drawn comes before what is automatic"


def test_nothing_known(portrait_session: Session, request_of: Request, with_face: Scene, faceless: Path) -> None:
    scenes = [SCENE, replace(SCENE, inits=(load_picture(faceless),))]
    for scene, settings in (*((s, request_of()) for s in scenes), (with_face, request_of(tracking={"sources": []}))):
        prepared = portrait_session.prepare(settings, scene)
        assert prepared.injection.identities[0].region is None
        assert "nothing says where" in prepared.explanation.persons[0].region


def test_two_people_take_two_faces_of_the_init_picture(
    portrait_session: Session, request_of: Request, portrait: Path
) -> None:
    one = load_picture(portrait)
    scene = Scene("sd15", 256, 128, inits=(np.concatenate([one, one[:, ::-1]], 1),))
    photos = [{"image": str(portrait)}, {"image": str(portrait), "identity": 1}]
    prepared = portrait_session.prepare(request_of(*photos), scene)
    left, right = (identity.region for identity in prepared.injection.identities)
    assert left is not None and right is not None
    assert left[..., 128:].max() == 0 and right[..., :128].max() == 0
    assert left.sum() == pytest.approx(float(right.sum()), rel=0.2)


def test_a_box_in_a_crop_of_the_whole_picture(portrait_session: Session, request_of: Request) -> None:
    """ "Only masked" makes the left three quarters of the right half: the box's edge lies a third into it."""
    box = {"kind": "box", "box": {"x0": 0.625}}
    scene = replace(SCENE, crop=Crop(0.5, 0.25, 0.875, 0.75))
    mask = mask_of(portrait_session.prepare(request_of(regions=[box]), scene))[0]
    edge = SCENE.width / 3
    columns = torch.arange(SCENE.width)
    assert (mask[:, columns > edge] == 1).all() and (mask[:, columns < edge - 1] == 0).all()
    outside = {"kind": "box", "box": {"x1": 0.25}}
    assert not portrait_session.prepare(request_of(regions=[outside]), scene).injection.active


def test_a_drawn_mask_in_a_crop(portrait_session: Session, request_of: Request, tmp_path: Path) -> None:
    drawn = np.zeros((100, 200), np.uint8)
    drawn[50:, 150:] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(drawn).save(path)
    region = {"kind": "mask", "mask": str(path)}
    scene = replace(SCENE, crop=Crop(0.5, 0.5, 1.0, 1.0))
    mask = mask_of(portrait_session.prepare(request_of(regions=[region]), scene))[0]
    half = SCENE.width // 2
    assert mask[:, :half].max() == 0 and mask[:, half:].min() == 1


def test_init_pictures_of_a_batch_have_a_mask_each(
    portrait_session: Session, request_of: Request, with_face: Scene, faceless: Path
) -> None:
    (face,) = with_face.inits
    both = replace(with_face, inits=(face, np.ascontiguousarray(face[:, ::-1])))
    mask = mask_of(portrait_session.prepare(request_of(), both))
    alone = mask_of(portrait_session.prepare(request_of(), with_face))
    assert mask.shape == (2, 256, 256) and torch.equal(mask[:1], alone)
    mirrored = mask[1].flip(-1)
    assert float((mirrored * mask[0]).sum() / torch.maximum(mirrored, mask[0]).sum()) > 0.8
    without = replace(with_face, inits=(face, load_picture(faceless)))
    prepared = portrait_session.prepare(request_of(), without)
    mask = mask_of(prepared)
    assert torch.equal(mask[:1], alone) and mask[1].min() == 1  # nothing says where its face will be
    assert prepared.injection.schedule.start == 0.15


# As many masks as a request can have.


@pytest.mark.parametrize(
    ("grow", "feather", "near"), [(0.0, 0.0, 1e-4), (0.0, 0.02, 0.01), (0.1, 0.05, 0.05), (1.0, 1.0, 0.02)]
)
def test_masks_of_many_regions_are_coarser_and_the_gates_nearly_as_they_were(
    portrait_session: Session, grow: float, feather: float, near: float
) -> None:
    region = {"kind": "box", "box": {"x0": 0.23, "x1": 0.61, "y0": 0.1, "y1": 0.52}, "grow": grow, "feather": feather}
    photos, encoders = portrait_session.photos, portrait_session.encoders
    masks: list[Tensor] = []
    for number in (1, 32):
        settings = Settings.from_dict({"regions": [region] * number})
        found = RequestedRegions(settings, Scene("sd15", 1024, 768), photos, encoders).find_regions(0)
        assert found.mask is not None
        masks.append(found.mask)
    assert [tuple(mask.shape) for mask in masks] == [(1, 768, 1024), (1, 384, 512)]
    for halvings in range(3):
        fine, coarse = (on_grid(mask, Grid(96, 128), halvings) for mask in masks)
        assert (fine - coarse).abs().max() < near


def test_what_several_regions_ask_for_is_made_once(
    portrait_session: Session, request_of: Request, with_face: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser, parsed = portrait_session.encoders.parser, 0
    parse = parser.parse

    def count(*args: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return parse(*args)

    monkeypatch.setattr(parser, "parse", count)
    requested = RequestedRegions(
        request_of(regions=[{}] * 12), with_face, portrait_session.photos, portrait_session.encoders
    )
    assert requested.find_regions(0).known
    assert parsed == 1


def test_a_large_init_picture_is_looked_at_in_a_smaller_one(portrait_session: Session, portrait: Path) -> None:
    large = np.asarray(Image.open(portrait).convert("RGB").resize((2400, 2400)), np.uint8)
    settings = Settings.from_dict({"regions": [{}]})
    scene = Scene("sd15", 512, 512, (large,))
    requested = RequestedRegions(settings, scene, portrait_session.photos, portrait_session.encoders)
    (seen,) = requested.scene.inits
    assert seen.shape[0] * seen.shape[1] <= 2**21
    assert requested.find_regions(0).known
