"""Pairs, claims and the front."""

from __future__ import annotations

import pytest

from dp_adapter.evaluation.score_summary import (
    Point,
    TableRow,
    judge_claims,
    paired_difference,
    paired_differences,
    pareto_front,
    statement_shares,
    summarise,
)


def rows(dp: float, add: float, metric: str = "prompt") -> list[TableRow]:
    """Five persons, two seeds; persons differ far more than arms do."""
    made: list[TableRow] = []
    for person in range(5):
        for seed in range(2):
            for arm, value in (("base", 0.0), ("add", add), ("dp", dp)):
                values = {metric: 0.1 * person + value + 0.001 * seed, "detected": 1.0}
                made.append(TableRow(f"p{person}", 0, "", seed, arm, "", values, {"hair black": arm == "dp"}))
    return made


def test_a_paired_difference_is_blind_to_persons() -> None:
    found = paired_difference(rows(0.30, 0.28), "dp", "add", "prompt")
    assert found is not None and (found.mean, found.low, found.high) == pytest.approx((0.02, 0.02, 0.02))
    means = summarise(rows(0.30, 0.28))
    assert means["dp"]["prompt"].apart_from(means["add"]["prompt"]) is False
    assert paired_differences(rows(0.3, 0.28))["base"]["prompt"].mean == pytest.approx(-0.28)
    assert paired_difference(rows(0.3, 0.2), "dp", "add", "outside") is None


def test_the_claim_is_judged_by_the_whole_interval() -> None:
    def of(found: list[TableRow]) -> dict[str, bool | None]:
        return {claim.words.split(" ")[0]: claim.holds for claim in judge_claims(found)}

    assert of(rows(0.30, 0.28))["prompt"] is True
    assert of(rows(0.27, 0.28))["prompt"] is False
    assert of(rows(0.30, 0.28))["drift"] is None, "not measured"
    assert of(rows(0.1, 0.2, "outside"))["drift"] is True
    assert judge_claims(rows(0.27, 0.28, "identity"))[0].holds is True
    assert judge_claims(rows(0.25, 0.28, "identity"))[0].holds is False
    unseen = [
        TableRow(*(r.person, r.prompt, r.text, r.seed, r.arm, r.file), {**r.values, "detected": 0.0}, {})
        for r in rows(0.28, 0.28, "identity")
    ]
    assert judge_claims(unseen)[0].holds is None


def test_statements_by_kind() -> None:
    assert statement_shares(rows(0.1, 0.1)) == {"base": {"hair": 0.0}, "add": {"hair": 0.0}, "dp": {"hair": 1.0}}


def test_the_front_drops_what_is_beaten() -> None:
    a, b, c, d = (
        Point("x", "a", 0.1, 0.9),
        Point("x", "b", 0.5, 0.5),
        Point("x", "c", 0.4, 0.5),
        Point("x", "d", 0.9, 0.1),
    )
    assert pareto_front([d, c, b, a]) == [a, b, d]
