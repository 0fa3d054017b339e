"""The parts of a picture that are made anew, and how they are put back."""

from __future__ import annotations

import numpy as np
import pytest

from dp_adapter.identity.faces.face import Face
from dp_adapter.modes import TABLE, ModeFacts, ResolvedMode, resolve_mode
from dp_adapter.session.results import face_pass_plan
from dp_adapter.settings import FacePass, Settings

PHOTOS = [{"image": "a.png"}, {"image": "b.png", "identity": 1, "weight": 0.5}]


def edit(settings: Settings) -> ResolvedMode:
    return resolve_mode(settings, TABLE[settings.mode], ModeFacts())


def face(x0: float, y0: float, x1: float, y1: float) -> Face:
    return Face(np.array([x0, y0, x1, y1], np.float32), np.zeros((5, 2), np.float32), 0.9)


def test_who_wants_one() -> None:
    for mode, expected in (("portrait", (False, True, False)), ("full_body", (True, True, False))):
        asked = [Settings.from_dict({"mode": mode, "face_pass": {"use": use}}) for use in ("auto", "on", "off")]
        assert tuple(face_pass_plan.is_wanted(one, edit(one)) for one in asked) == expected
    assert not face_pass_plan.is_wanted(Settings.from_dict({"face_pass": {"use": "on"}}), None), "the adapter is off"


def test_the_request_of_one_face() -> None:
    asked = Settings.from_dict(
        {
            "references": PHOTOS, "weight": 0.3, "mode": "full_body", "span": {"end": 0.4}, "curve": "0@0, 1@1",
            "regions": [{"kind": "box", "identity": 1, "box": {"x0": 0.5}}], "hires": {"use": "off"},
            "report": {"best_of": 4}, "face_pass": {"weight": 0.9}, "blend": "add", "lora_weight": 0.7,
        }
    )  # fmt: skip
    theirs = face_pass_plan.request(asked, edit(asked), 1)
    assert theirs == Settings.from_dict(
        {
            "references": [{"image": "b.png", "weight": 0.5}], "weight": 0.9, "regions": [{"kind": "full"}],
            "span": {"start": 0}, "face_pass": {"use": "off"}, "blend": "add", "lora_weight": 0.7,
        }
    )  # fmt: skip
    age = Settings.from_dict({"references": PHOTOS, "mode": "age", "target_age": 60, "reference_age": 30})
    assert face_pass_plan.request(age, edit(age), 0).mode == "age", "what a mode does to the face stays"


@pytest.mark.parametrize("use", ["auto", "on"])
def test_words_about_the_whole_picture_stay_out_whoever_asked_for_the_pass(use: str) -> None:
    asked = Settings.from_dict({"references": PHOTOS, "mode": "full_body", "face_pass": {"use": use}})
    assert face_pass_plan.request(asked, edit(asked), 0).mode == "portrait"


@pytest.mark.parametrize(
    ("native", "picture", "side"),
    [
        (512, (512, 768), 512),
        (1024, (1024, 1024), 1024),
        (1024, (832, 1216), 1024),
        (128, (128, 128), 128),
        (128, (256, 256), 128),
        (1024, (512, 512), 512),  # SDXL Turbo says nothing about its size
    ],
)
def test_a_face_is_enlarged_to_what_the_base_draws(native: int, picture: tuple[int, int], side: int) -> None:
    assert face_pass_plan.side(FacePass(), native, *picture) == side
    assert face_pass_plan.side(FacePass(size=768), native, *picture) == 768, "as the user says"


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 100, 140, 150), (65, 70, 110, 512)),
        ((0, 0, 40, 50), (0, 0, 110, 512)),  # moved inside
        ((360, 250, 400, 300), (290, 190, 110, 512)),
        ((50, 20, 250, 270), (0, 0, 300, 512)),  # as high as the picture
    ],
)
def test_the_square_lies_in_the_picture(box: tuple[int, int, int, int], expected: tuple[int, int, int, int]) -> None:
    part = face_pass_plan.square(face(*box), 400, 300, 512)
    assert (part.x, part.y, part.side, part.work) == expected


def test_it_is_never_reduced_and_a_multiple_of_8() -> None:
    assert face_pass_plan.square(face(500, 500, 1000, 1000), 2000, 2000, 512).work == 1104
    assert face_pass_plan.square(face(10, 10, 40, 40), 2000, 2000, 500).work == 504


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(40, 200, (300, 400, 3)).astype(np.uint8)


def test_what_came_back_unchanged_changes_little() -> None:
    before, one = picture(), face(180, 100, 220, 150)
    smooth = np.repeat(np.repeat(before[::20, ::20], 20, 0), 20, 1)
    part = face_pass_plan.square(one, 400, 300, 512)
    made = face_pass_plan.enlarge_square(smooth, part)
    assert made.shape == (512, 512, 3)
    after = face_pass_plan.paste_square(smooth, made, part, one)
    assert np.abs(after.astype(int) - smooth).mean() < 0.5


def test_only_the_face_is_taken_and_colours_are_kept() -> None:
    before, one = np.full((300, 400, 3), 100, np.uint8), face(180, 100, 220, 150)
    part = face_pass_plan.square(one, 400, 300, 512)
    made = np.full((512, 512, 3), 130, np.uint8)  # the VAE made all of it lighter
    made[200:312, 200:312] = 230  # and the face itself is another
    after = face_pass_plan.paste_square(before, made, part, one).astype(int)
    assert np.abs(after[125, 200] - 200).max() <= 6, "what is new in the face is there"
    outside = after.copy()
    outside[part.y : part.y + part.side, part.x : part.x + part.side] = 100
    assert (outside == 100).all() and np.abs(after[part.y, part.x : part.x + part.side] - 100).max() == 0
    assert np.abs(after[100 - 20, 200] - 100).max() <= 6


def test_at_the_pictures_own_edge_nothing_fades() -> None:
    before, one = np.full((300, 400, 3), 100, np.uint8), face(0, 100, 60, 170)
    part = face_pass_plan.square(one, 400, 300, 512)
    made = np.full((512, 512, 3), 100, np.uint8)
    made[220:290, :60] = 200
    after = face_pass_plan.paste_square(before, made, part, one)
    assert part.x == 0 and after[135, 0, 0] > 180
