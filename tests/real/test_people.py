"""Two and three people in one picture of a running WebUI, each in their place, or by their words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.real.conftest import Picture, WebUI, largest

pytestmark = pytest.mark.real
PLACES = {2: ((0.0, 0.375), (0.625, 1.0)), 3: ((0.0, 0.25), (0.375, 0.625), (0.75, 1.0))}
OVERLAPPING = {2: ((0.0, 0.625), (0.375, 1.0)), 3: ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))}
PROMPT = "a woman, a man and a child in a garden"


def together(
    person: dict[str, Any], edges: tuple[tuple[float, float], ...], only: int | None = None, **fields: Any
) -> dict[str, Any]:
    """As many persons as boxes between fractions of the width; with ``only``, the others' boxes have weight 0."""
    regions = [
        {"kind": "box", "box": {"x0": x0, "x1": x1}, "identity": n, "weight": float(only in (None, n))}
        for n, (x0, x1) in enumerate(edges)
    ]
    references = [{**person["references"][0], "identity": n} for n in range(len(edges))]
    return {**person, "references": references, "regions": regions, "strict_text_region": True, **fields}


def change(made: Picture, plain: Picture, edges: tuple[float, float]) -> float:
    """Mean change between two fractions of the width."""
    x0, x1 = (round(edge * plain.shape[1]) for edge in edges)
    return float(np.abs(made - plain)[:, x0:x1].mean())


@pytest.mark.parametrize("count", [2, 3])
def test_each_person_acts_in_their_own_place(webui: WebUI, person: dict[str, Any], count: int) -> None:
    """One person alone changes their own box, and the others' at most as much as the VAE spreads."""
    plain = webui.one(width=256, steps=2)
    places = PLACES[count]
    for number, own in enumerate(places):
        made = webui.one(together(person, places, number), width=256, steps=2)
        inside = change(made, plain, own)
        assert inside > 1
        for other in places:
            assert other == own or change(made, plain, other) < inside / 3, (number, own, other)


@pytest.mark.parametrize("count", [2, 3])
def test_the_masks_are_the_persons_places(webui: WebUI, person: dict[str, Any], count: int) -> None:
    for places in (PLACES[count], OVERLAPPING[count]):
        made = webui.make(together(person, places, report={"masks": True}), width=256, steps=2)
        masks = [picture[..., 0] > 127 for picture in made.pictures[-count:]]
        for mask, (x0, x1) in zip(masks, places, strict=True):
            columns = np.flatnonzero(mask.any(0)) / mask.shape[1]
            assert columns[0] == pytest.approx(x0, abs=0.02) and columns[-1] == pytest.approx(x1, abs=0.02)


def test_where_places_overlap_the_same_person_twice_is_that_person_once(webui: WebUI, person: dict[str, Any]) -> None:
    """Gates sum to one at most; twice the same photo on the whole picture is one of it, but for rounding."""
    whole = ((0.0, 1.0), (0.0, 1.0))
    once = webui.one(together(person, whole[:1], strict_text_region=False), steps=2)
    twice = webui.one(together(person, whole, strict_text_region=False), steps=2)
    assert largest(once, twice) <= 3


def test_persons_share_by_the_prompts_words(webui: WebUI, person: dict[str, Any]) -> None:
    references = [{**person["references"][0], "identity": n} for n in range(3)]
    shared = {**person, "references": references, "regions": [], "sharing": "words"}
    plain = webui.one(prompt=PROMPT)
    made = webui.one(shared, prompt=PROMPT)
    assert largest(made, plain) > 3
    assert largest(made, webui.one(shared, prompt=PROMPT)) == 0
    assert largest(plain, webui.one(prompt=PROMPT)) == 0
    # The same photo three times: whoever has a place, all of it is that photo's.
    alone = webui.one({**person, "performance": {"form": "plain"}}, prompt=PROMPT)
    assert largest(made, alone) <= 3


def test_who_has_no_word_is_told(webui: WebUI, person: dict[str, Any]) -> None:
    references = [{**person["references"][0], "identity": n} for n in range(2)]
    answer = webui.answer({**person, "references": references, "regions": [], "sharing": "words"}, prompt="a man")
    assert answer.status_code == 422 and "nothing in the prompt says who person 2 is" in answer.text
