"""Arms, people, seeds, prompts, judges and the search of tune."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import pytest

from dp_adapter.errors import MissingDependencyError, PictureError, SettingsError
from dp_adapter.evaluation import fastcomposer_prompts, settings_search
from dp_adapter.evaluation.identity_judges import open_judge
from dp_adapter.evaluation.protocol import ARMS, EvaluationPlan, choose_arms, fill_template, find_people
from dp_adapter.settings import Region, Settings


def test_arms_change_what_they_say() -> None:
    shared = Settings().with_fields({"weight": 0.9, "text_emphasis": 0.3})
    requests = {arm.name: arm.make_request(shared, "a.safetensors", Path("p.jpg")) for arm in ARMS}
    assert not requests["base"].enabled
    assert requests["dp"].regions == () and requests["dp"].text_emphasis == 0.3
    assert requests["add"].regions == (Region(kind="full"),) and requests["add"].text_emphasis == 0
    assert requests["add"].span.start == 0 and requests["no-tca"].text_weight == 0
    assert requests["no-ffb"].gate.middle == 1 and requests["no-regions"].regions[0].kind == "full"
    assert {request.weight for request in requests.values()} == {0.9}
    assert [arm.name for arm in choose_arms(["no-ffb"])] == ["base", "add", "dp", "no-ffb"]
    with pytest.raises(SettingsError, match="no arm 'dpp'"):
        choose_arms(["dpp"])


def test_people_by_the_names_of_their_photos(tmp_path: Path) -> None:
    for name in ("ann_a.jpg", "ann_b.jpg", "ann_c.png", "bob.webp", "notes.txt", "o_neil_a.jpg"):
        (tmp_path / name).touch()
    people = find_people(tmp_path)
    assert [(one.name, one.photo.name, len(one.others)) for one in people] == [
        ("ann", "ann_a.jpg", 2), ("bob", "bob.webp", 0), ("o_neil", "o_neil_a.jpg", 0),
    ]  # fmt: skip
    assert len(find_people(tmp_path, 1)) == 1
    (tmp_path / "cy_b.jpg").touch()
    with pytest.raises(PictureError, match="cy has no first photo"):
        find_people(tmp_path)
    with pytest.raises(PictureError, match="no folder"):
        find_people(tmp_path / "none")


def test_no_seed_is_used_twice(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    prompts = tuple(fill_template(text, "man img") for text in fastcomposer_prompts.prompt_templates()[:3])
    plan = EvaluationPlan(find_people(tmp_path), (prompts, prompts), 4, 100, ARMS)
    used = [plan.seed(person, prompt) + k for person in range(2) for prompt in range(3) for k in range(4)]
    assert used == list(range(100, 124)) and plan.pictures == 24 * len(ARMS)


def test_fastcomposer_s_prompts() -> None:
    texts = fastcomposer_prompts.prompt_templates()
    assert len(texts) == len(set(texts)) == 40 and all(text.count("{person}") == 1 for text in texts)
    one = fill_template(texts[0], "woman img")
    assert (one.text, one.judged) == ("a woman img wearing a red hat", "a person wearing a red hat")


def test_a_judge_may_not_judge_itself() -> None:
    with pytest.raises(SettingsError, match=r"SFace .* would judge itself.*dlib or insightface"):
        open_judge("sface", ["sface"])
    assert open_judge("sface", ["arcface", "clip-hidden"]).licence == "Apache-2.0"
    with pytest.raises(SettingsError, match="no judge 'adaface'"):
        open_judge("adaface", [])
    if importlib.util.find_spec("dlib") is None:
        with pytest.raises(MissingDependencyError, match="dlib-bin"):
            open_judge("dlib", ["sface"])


def test_tune_spends_its_budget_on_the_better_half() -> None:
    tried: list[Mapping[str, float]] = []

    def attempt(changes: Mapping[str, float], number: int) -> tuple[float, float]:
        tried.append(changes)
        weight = changes["weight"]
        return min(weight, 1.0), 1 - 0.5 * weight**2 + 0.001 * number

    pool = settings_search.make_candidates(0.8, 40)
    found = settings_search.search(pool, 40, attempt)
    assert len(tried) == sum(one.count for one in found) <= 40 and len(found) == len(pool)
    assert all(one.count >= settings_search.FIRST for one in found)
    most = max(found, key=lambda one: one.count)
    assert (
        most.count > settings_search.FIRST and most.harmonic >= sorted(one.harmonic for one in found)[len(found) // 2]
    )
    assert (
        settings_search.make_candidates(0.8, 4)[0].label == "0.8" and len(settings_search.make_candidates(0.8, 4)) == 2
    )
