"""The checker on scenes composed of a real portrait: what the caption states is true, and its opposite is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face_parsing import CLOTHES, SelfieParser
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.small_base.background_patterns import GRID, find_pattern, templates
from dp_adapter.small_base.caption_check import CaptionCheck
from dp_adapter.small_base.caption_grammar import Statement, parse_caption
from dp_adapter.small_base.portrait_facts import HairMeasure
from dp_adapter.small_base.scene_measures import nearest_colour, nearest_pattern_colour, pattern_colours, plain_colours
from tools.small_base import portraits, scenes


@pytest.fixture(scope="module")
def check() -> CaptionCheck:
    return CaptionCheck()


@pytest.fixture(scope="module")
def portrait(people: list[Path], check: CaptionCheck) -> portraits.Portrait:
    import cv2

    picture = np.asarray(cv2.resize(load_picture(people[0]), (192, 240), interpolation=cv2.INTER_AREA), np.uint8)
    face = YuNet(tiles=False).detect(picture)[0]
    square = np.asarray(cv2.resize(picture, (256, 256)), np.uint8)
    labels = cv2.resize(
        SelfieParser().logits(square).argmax(-1).astype(np.uint8), (192, 240), interpolation=cv2.INTER_NEAREST
    )
    x0, y0, x1, y1 = face.box.tolist()
    box = np.array([x0, y0, x1 - x0, y1 - y0], np.float32)
    return portraits.measure("a", 0, picture, np.asarray(labels, np.uint8), face.points, box, np.zeros(128, np.float32))


@pytest.mark.parametrize(
    ("size", "place", "clothes", "background", "pattern", "grey"),
    [
        ("portrait", "on the left", "red", "blue", "striped", False),
        ("close-up", "in the centre", "green", "white", "plain", False),
        ("full body", "on the right", "yellow", "purple", "checkered", False),
        ("portrait", "in the centre", "black", "pink", "dotted", True),
    ],
)
def test_a_composed_scene_is_what_its_caption_says(
    check: CaptionCheck,
    portrait: portraits.Portrait,
    size: str,
    place: str,
    clothes: str,
    background: str,
    pattern: str,
    grey: bool,
) -> None:
    person = scenes.Person(0, clothes, place, portrait.hair, portrait.glasses, None, False)
    plan = scenes.Plan(size, background, pattern, grey, (person,))
    random = np.random.default_rng(5)
    caption = scenes.write_caption(random, plan, whole=True)
    scene = scenes.compose(random, plan, [portrait])
    measured = check.measure(scene.picture)
    assert [str(one) for one in parse_caption(caption) if not measured.confirms(one)] == []

    false = [Statement("people", "2"), Statement("medium", "color" if grey else "grey")]
    if not grey:
        false += [Statement("background", "orange"), Statement("clothes", "brown")]
    false += [Statement("place", other) for other in scenes.PLACES if other != place]
    assert not any(measured.confirms(one) for one in false)


def test_without_a_face_nothing_is_true_of_a_person(check: CaptionCheck) -> None:
    wall = np.zeros((128, 128, 3), np.uint8)
    wall[:] = scenes.COLOURS["green"]
    verdict = check.check(wall, "color photo of a smiling person, with glasses, red clothes, green background")
    true = {one.kind for one, holds in verdict.statements if holds}
    assert true == {"medium", "background", "pattern"} and verdict.score == pytest.approx(3 / 7)


def test_every_template_is_found_and_noise_is_plain() -> None:
    everywhere = np.ones((GRID, GRID), np.float32)
    for name, bank in templates().items():
        for template in bank[:: len(bank) // 3]:
            assert find_pattern(0.5 + 0.2 * template.reshape(GRID, GRID), everywhere).name == name
    noise = np.random.default_rng(0).normal(0.5, 0.2, (GRID, GRID)).astype(np.float32)
    assert find_pattern(noise, everywhere).name == "plain"
    assert find_pattern(noise, np.zeros_like(everywhere)).name == "plain"


def test_every_colour_is_nearest_to_itself() -> None:
    assert [nearest_colour(lab) for lab in plain_colours().values()] == list(plain_colours())
    assert [nearest_pattern_colour(*shades) for shades in pattern_colours().values()] == list(pattern_colours())


def test_hair_is_said_strictly_and_judged_in_the_middle() -> None:
    assert HairMeasure(0.3, 15, 1, 2).strict == "black" and HairMeasure(0.3, 23, 1, 2).strict is None
    assert HairMeasure(0.3, 23, 1, 2).can_be("black") and not HairMeasure(0.3, 27, 1, 2).can_be("black")
    assert HairMeasure(0.01).strict == "no" and HairMeasure(0.09).can_be("no")
    assert CLOTHES == portraits.CLOTHES
