"""Regions that follow the faces of the picture that forms: real faces, the real detector and parser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.core.injection import Identity
from dp_adapter.core.latent_gate import LatentGate
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.session import Prepared, Scene, Session
from dp_adapter.session.explain import explain_inaction
from dp_adapter.session.regions.tracker import PreviewLook, Tracker
from dp_adapter.weights import formats
from dp_adapter.weights.families import own_adapter
from tests.session.conftest import Request

SIZE = 320
SCENE = Scene("sd15", SIZE, SIZE)


@pytest.fixture(scope="module")
def heads(people: list[Path]) -> list[Picture]:
    """Two people's heads, 160 px wide."""
    import cv2

    cropped = [load_picture(path)[:, :, :] for path in people[0:4:2]]
    squares = [one[: min(one.shape[:2]), : min(one.shape[:2])] for one in cropped]
    return [np.asarray(cv2.resize(one, (160, 160), interpolation=cv2.INTER_AREA), np.uint8) for one in squares]


def made(*placed: tuple[Picture, int, int]) -> Picture:
    """A grey picture with heads at (x, y)."""
    picture = np.full((SIZE, SIZE, 3), 110, np.uint8)
    for head, x, y in placed:
        picture[y : y + len(head), x : x + head.shape[1]] = head
    return picture


def tracker_of(prepared: Prepared) -> Tracker:
    assert prepared.tracker is not None
    prepared.tracker.restart()
    return prepared.tracker


def masks(prepared: Prepared) -> list[Tensor | None]:
    return [identity.region for identity in prepared.injection.identities]


def seen(tracker: Tracker, *pictures: Picture, progress: float = 0.3) -> PreviewLook:
    assert tracker.is_due(progress)
    look = tracker.look(pictures, progress)
    tracker.apply(look)
    return look


def side(mask: Tensor | None) -> str:
    """The half in which nearly all of a mask lies."""
    assert mask is not None
    left = float(mask[..., : mask.shape[-1] // 2].sum() / mask.sum())
    return "left" if left > 0.95 else "right" if left < 0.05 else "both"


def test_it_acts_nowhere_until_a_face_is_found_and_then_there(
    portrait_session: Session, request_of: Request, heads: list[Picture]
) -> None:
    prepared = portrait_session.prepare(request_of(), SCENE)
    tracker = tracker_of(prepared)
    (before,) = masks(prepared)
    assert prepared.injection.active and before is not None and before.eq(0).all()
    assert prepared.injection.schedule.start == 0 and "nowhere until then" in prepared.explanation.persons[0].region
    assert tracker.unseen_persons() == (0,)
    seen(tracker, made((heads[0], 0, 100)))
    (after,) = masks(prepared)
    assert side(after) == "left" and after is not None and 0.03 < float(after.mean()) < 0.2
    assert tracker.unseen_persons() == ()
    seen(tracker, made((heads[0], 150, 100)), progress=0.6)
    assert side(masks(prepared)[0]) == "right"
    tracker.restart()
    (again,) = masks(prepared)
    assert again is not None and again.eq(0).all(), "the next batch starts from nothing"


def test_a_lost_face_keeps_its_place(portrait_session: Session, request_of: Request, heads: list[Picture]) -> None:
    prepared = portrait_session.prepare(request_of(), SCENE)
    tracker = tracker_of(prepared)
    seen(tracker, made((heads[0], 0, 100)), progress=0.2)
    (found,) = masks(prepared)
    seen(tracker, made(), progress=0.4)
    (kept,) = masks(prepared)
    assert found is not None and kept is not None and torch.equal(found, kept)


def test_moments_are_looked_at_once(portrait_session: Session, request_of: Request) -> None:
    moments = {"moments": [0.2, 0.5], "sources": ["preview"]}
    tracker = tracker_of(portrait_session.prepare(request_of(tracking=moments), SCENE))
    asked = [progress for progress in (0.0, 0.1, 0.2, 0.25, 0.3, 0.6, 0.61, 0.9) if tracker.is_due(progress)]
    assert asked == [0.2, 0.6]
    assert not tracker.wants_attention
    tracker.restart()
    assert tracker.is_due(0.9) and not tracker.is_due(0.95), "moments that are over already are one look"


@pytest.fixture
def gated_session(models: Path, adapter_file: Path) -> Session:
    """Of an adapter whose gate sees a face wherever the first channel of the prediction is high."""
    adapter = formats.read(adapter_file).adapter
    adapter.gate = LatentGate(4, 8)
    with torch.no_grad():
        for parameter in adapter.gate.parameters():
            parameter.zero_()
        adapter.gate.first.weight[0, 0, 1, 1] = 1.0
        adapter.gate.last.weight[0, 0, 1, 1] = 4.0
        adapter.gate.get_parameter("last.bias").fill_(-4.0)
    for file in (models / "dp_adapter").iterdir():
        file.unlink()
    own_adapter.save(models / "dp_adapter" / "gated.safetensors", adapter, "sd15", "sface", {}, guidance=1.25)
    return Session([models], paths_allowed=True)


def test_a_gate_moves_the_region_at_every_call(gated_session: Session, request_of: Request) -> None:
    prepared = gated_session.prepare(request_of(), SCENE)
    tracker = tracker_of(prepared)
    assert tracker.plan.by_gate and not tracker.is_due(1.0) and not tracker.wants_attention, "nothing else looks"
    assert "each seen by its gate" in prepared.explanation.persons[0].region
    latents = torch.full((2, 4, 40, 40), -4.0)
    tracker.follow(latents, 0.05)
    assert tracker.unseen_persons() == (0,) and "was not found while the picture formed" in tracker.notes()[0]
    (mask,) = masks(prepared)
    assert mask is not None and not mask.any(), "nowhere, until a face shows"
    latents[0, 0, 10:25, 5:15] = 5.0
    latents[1, 0, 10:25, 25:35] = 5.0
    tracker.follow(latents, 0.1)
    (mask,) = masks(prepared)
    assert mask is not None and side(mask[:1]) == "left" and side(mask[1:]) == "right"
    assert tracker.unseen_persons() == () == tracker.notes()
    tracker.follow(latents.flip(0), 0.9)
    assert side(masks(prepared)[0][:1]) == "right", "it follows until the end"  # type: ignore[index]
    tracker.follow(latents.flip(0) - 20, 0.95)
    assert side(masks(prepared)[0][:1]) == "right", "a lost face keeps its place"  # type: ignore[index]


@pytest.mark.parametrize(
    "fields",
    [
        {"free_parts": True},
        {"parts": {"mouth": 0.2}},
        {"parts": {"hair": 1.0}},
        {"tracking": {"sources": ["init", "attention"]}},
    ],
)
def test_a_gate_leaves_to_others_what_it_cannot_see(
    gated_session: Session, request_of: Request, fields: dict[str, Any]
) -> None:
    tracker = tracker_of(gated_session.prepare(request_of(**fields), SCENE))
    assert tracker.gate is None and not tracker.plan.by_gate


def test_a_gate_does_not_say_whose_face_it_is(gated_session: Session, request_of: Request, portrait: Path) -> None:
    photos = [{"image": str(portrait)}, {"image": str(portrait), "identity": 1}]
    assert tracker_of(gated_session.prepare(request_of(*photos), SCENE)).gate is None


@pytest.mark.parametrize(("asked", "acts"), [(None, 1.25), (0.0, None), (0.5, 0.5)])
def test_the_guidance_is_the_models_own_unless_asked_for(
    gated_session: Session, request_of: Request, asked: float | None, acts: float | None
) -> None:
    prepared = gated_session.prepare(request_of(identity_guidance=asked), SCENE)
    assert prepared.injection.guidance == acts
    first = prepared.explanation.lines()[0]
    assert ("identity guidance" in first) == (acts is not None) and prepared.explanation.guidance == acts


@pytest.mark.parametrize(("fallback", "before", "late"), [("late", 0.0, 1.0), ("none", 0.0, 0.0), ("full", 1.0, 1.0)])
def test_without_a_face(
    portrait_session: Session, request_of: Request, fallback: str, before: float, late: float
) -> None:
    prepared = portrait_session.prepare(request_of(tracking={"fallback": fallback}), SCENE)
    tracker = tracker_of(prepared)

    def coverage() -> float:
        (mask,) = masks(prepared)
        return 1.0 if mask is None else float(mask.mean())

    assert coverage() == before
    seen(tracker, made(), progress=0.3)
    tracker.give_up(0.3)
    assert coverage() == before
    seen(tracker, made(), progress=0.55)
    tracker.give_up(0.55)
    assert coverage() == late and tracker.unseen_persons() == (0,)


def test_pictures_of_a_batch_have_a_region_each(
    portrait_session: Session, request_of: Request, heads: list[Picture]
) -> None:
    prepared = portrait_session.prepare(request_of(), SCENE)
    tracker = tracker_of(prepared)
    seen(tracker, made((heads[0], 0, 100)), made(), made((heads[0], 160, 100)))
    (mask,) = masks(prepared)
    assert mask is not None and mask.shape[0] == 3
    assert (side(mask[0]), float(mask[1].max()), side(mask[2])) == ("left", 0.0, "right")
    tracker.give_up(0.9)
    (mask,) = masks(prepared)
    assert mask is not None and mask[1].min() == 1 and side(mask[0]) == "left"


def test_two_people_by_order_and_by_likeness(
    portrait_session: Session, request_of: Request, heads: list[Picture], people: list[Path]
) -> None:
    photos = [{"image": str(people[1])}, {"image": str(people[3]), "identity": 1}]
    prepared = portrait_session.prepare(request_of(*photos), SCENE)
    tracker = tracker_of(prepared)
    crossed = made((heads[1], 0, 100), (heads[0], 160, 100))
    seen(tracker, crossed, progress=0.2)
    assert [side(mask) for mask in masks(prepared)] == ["left", "right"], "nothing but the order is known early"
    seen(tracker, crossed, progress=0.6)
    assert [side(mask) for mask in masks(prepared)] == ["right", "left"], "the faces show whose they are"


def test_a_face_in_a_drawn_region_is_not_taken(
    portrait_session: Session, request_of: Request, heads: list[Picture], people: list[Path]
) -> None:
    photos = [{"image": str(people[1])}, {"image": str(people[3]), "identity": 1}]
    left = {"kind": "box", "box": {"x1": 0.5}, "identity": 0}
    prepared = portrait_session.prepare(request_of(*photos, regions=[left]), SCENE)
    tracker = tracker_of(prepared)
    assert [person.number for person in tracker.persons] == [1]
    seen(tracker, made((heads[0], 0, 100), (heads[1], 160, 120)))
    assert [side(mask) for mask in masks(prepared)] == ["left", "right"]


def test_drawn_regions_are_joined_with_the_face(
    portrait_session: Session, request_of: Request, heads: list[Picture]
) -> None:
    corner = {"kind": "box", "box": {"x0": 0.9, "y0": 0.9}}
    hole = {"kind": "box", "op": "subtract", "box": {"x1": 0.5, "y0": 0.5}}
    prepared = portrait_session.prepare(request_of(regions=[{"kind": "auto"}, corner, hole]), SCENE)
    tracker = tracker_of(prepared)
    (before,) = masks(prepared)
    assert before is not None and before[:, -5, -5].min() == 1 and before[:, :150].max() == 0
    seen(tracker, made((heads[0], 0, 100)))
    (after,) = masks(prepared)
    assert after is not None and after[:, -5, -5].min() == 1
    assert after[:, 100:160, :160].max() > 0.9 and after[:, 161:, :160].max() == 0


def test_the_init_picture_is_where_it_starts(
    portrait_session: Session, request_of: Request, heads: list[Picture]
) -> None:
    scene = replace(SCENE, inits=(made((heads[0], 0, 100)),))
    prepared = portrait_session.prepare(request_of(), scene)
    tracker = tracker_of(prepared)
    assert side(masks(prepared)[0]) == "left" and tracker.unseen_persons() == ()
    tracker.give_up(0.9)
    assert side(masks(prepared)[0]) == "left", "a known region never becomes the whole picture"
    seen(tracker, made((heads[0], 160, 100)))
    assert side(masks(prepared)[0]) == "right", "the picture moved"


def test_the_hires_pass_starts_from_the_first(
    portrait_session: Session, request_of: Request, heads: list[Picture]
) -> None:
    first = portrait_session.prepare(request_of(), SCENE)
    seen(tracker_of(first), made((heads[0], 0, 100)), made((heads[0], 160, 100)))
    hires = portrait_session.prepare(request_of(), Scene("sd15", 2 * SIZE, 2 * SIZE), first.tracker)
    tracker = tracker_of(hires)
    (mask,) = masks(hires)
    assert mask is not None and mask.shape == (2, 512, 512)
    assert [side(one) for one in mask] == ["left", "right"] and tracker.unseen_persons() == ()
    assert "first pass" in hires.explanation.persons[0].region


def test_attention_speaks_until_a_preview_does(
    portrait_session: Session, request_of: Request, heads: list[Picture]
) -> None:
    def right(_map: Tensor, people: int, _head: bool) -> list[Tensor | None]:
        half = torch.zeros(16, 16)
        half[:, 12:] = 1
        return [half] * people

    for order, expected in ((["preview", "attention"], "left"), (["attention", "preview"], "right")):
        prepared = portrait_session.prepare(request_of(tracking={"sources": order}), SCENE)
        tracker = tracker_of(prepared)
        tracker._around = replace(tracker._around, heads=right)  # pyright: ignore[reportPrivateUsage]
        assert tracker.wants_attention
        tracker.attend(torch.ones(1, 16, 16), lambda _: True)
        assert side(masks(prepared)[0]) == "right" and tracker.unseen_persons() == ()
        seen(tracker, made((heads[0], 0, 100)))
        assert side(masks(prepared)[0]) == expected
        assert tracker.wants_attention == (expected == "right")


def test_parts_handed_to_the_text_move_with_the_face(
    portrait_session: Session, request_of: Request, heads: list[Picture]
) -> None:
    found: dict[str, Tensor] = {}
    for name, parts in (("whole", {}), ("without", {"mouth": 0.0})):
        prepared = portrait_session.prepare(request_of(parts=parts), SCENE)
        seen(tracker_of(prepared), made((heads[0], 0, 100)))
        (mask,) = masks(prepared)
        assert mask is not None
        found[name] = mask
    lost = (found["whole"] - found["without"]).clamp(min=0)
    rows = lost[0].sum(1).nonzero().flatten()
    assert lost.max() > 0.9 and rows.min() > 150, "below the eyes"


def test_free_parts_move_with_the_face(portrait_session: Session, request_of: Request, heads: list[Picture]) -> None:
    prepared = portrait_session.prepare(request_of(parts={"mouth": 0.0}, free_parts=True), SCENE)
    (identity,) = prepared.injection.identities
    tracker = tracker_of(prepared)
    assert identity.free_region is None and not any("free" in note for note in prepared.explanation.notes)
    for x, expected in ((0, "left"), (160, "right")):
        seen(tracker, made((heads[0], x, 100)), progress=0.3 if x == 0 else 0.6)
        assert (
            side(identity.free_region) == expected
            and identity.free_region is not None
            and identity.free_region.max() > 0.9
        )
    tracker.restart()
    assert identity.free_region is None


@pytest.mark.parametrize(
    ("fields", "scene"),
    [
        ({"tracking": {"sources": ["init"]}}, SCENE),
        ({"regions": [{"kind": "full"}]}, SCENE),
        ({}, replace(SCENE, inpaint=np.ones((SIZE, SIZE), np.float32))),
    ],
)
def test_regions_that_stay_have_no_tracker(
    portrait_session: Session, request_of: Request, fields: dict[str, Any], scene: Scene
) -> None:
    prepared = portrait_session.prepare(request_of(**fields), scene)
    assert prepared.tracker is None
    assert all(isinstance(one, Identity) and one.track is None for one in prepared.injection.identities)


@pytest.mark.parametrize(
    ("fallback", "progress", "acts"),
    [
        ("late", (0.0,), True), ("late", (0.0, 0.5), True), ("late", (0.7,), True), ("late", (0.0, 0.1, 0.12), False),
        ("none", (0.0, 0.5), False), ("full", (0.0,), True), ("full", (0.0, 0.5), True),
        ("late", (0.0, 0.3, 0.6), False),
    ],
)  # fmt: skip
def test_with_too_few_steps_to_look_the_fallback_decides_from_the_start(
    portrait_session: Session, request_of: Request, fallback: str, progress: tuple[float, ...], acts: bool
) -> None:
    prepared = portrait_session.prepare(request_of(tracking={"fallback": fallback}), replace(SCENE, progress=progress))
    tracker = tracker_of(prepared)
    schedule = prepared.injection.schedule
    (mask,) = masks(prepared)
    assert (mask is None or bool(mask.eq(1).all())) is acts
    if acts:
        assert schedule.at(progress[-1]) == 1, "an automatic start leaves some step"
    for number, one in enumerate(progress):
        tracker.give_up(one, last=number == len(progress) - 1)
        tracker.count_call(schedule.at(one), 1)
    (note,) = tracker.notes()
    if fallback == "none":
        assert note.endswith("the identity acted nowhere.")
    else:
        times = len(progress) if acts else 1
        assert f"in the whole picture{'' if acts else ', from late on'} (in {times} of {len(progress)} calls" in note
    assert ("too few steps" in note) is ("too few steps" in prepared.explanation.persons[0].region)


def test_a_span_without_a_step_is_told(portrait_session: Session, request_of: Request) -> None:
    prepared = portrait_session.prepare(request_of(span={"start": 0.3, "end": 0.4}), SCENE)
    assert explain_inaction(prepared.injection, (0.0, 0.35)) == ()
    (note,) = explain_inaction(prepared.injection, (0.0, 0.25, 0.5))
    assert note.startswith(
        "The identity acted nowhere: no step lies from progress 0.3 to 0.4; the steps are at 0, 0.25"
    )


def test_what_stays_and_what_moves_share_a_large_picture(
    portrait_session: Session, request_of: Request, portrait: Path
) -> None:
    photos = [{"image": str(portrait), "identity": number} for number in range(3)]
    regions = [{"kind": "box", "box": {"x1": 0.5}}, {"identity": 1}, {"identity": 2}]
    prepared = portrait_session.prepare(request_of(*photos, regions=regions), Scene("sd15", 1024, 1024))
    tracker = tracker_of(prepared)
    head = torch.zeros(16, 16)
    head[:8, 12:] = 1
    tracker.apply(PreviewLook(({},), ({1: tracker.persons[0].region_of_head(head)},)))
    tracker.give_up(0.9, last=True)
    _, found, rest = masks(prepared)
    assert found is not None and rest is not None and found.shape == rest.shape == (1, 512, 512)
    assert rest[..., :256].max() == 0 and rest[0, 0, -1] == 0 and rest[0, -1, -1] == 1
