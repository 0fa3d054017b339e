"""Summaries of the scores of all pictures: means, intervals, paired differences, and whether the claims hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dp_adapter.evaluation.bootstrap import Interval, bootstrap_interval
from dp_adapter.evaluation.picture_scores import IDENTITY, METRICS, OUTSIDE, PRESERVATION, PROMPT, Metric
from dp_adapter.evaluation.protocol import ADD, BASE, DP

NEAR = 0.02
"""How far identity may be below plain add's (method.md, "Evaluation")."""


@dataclass(frozen=True)
class TableRow:
    """One judged picture.

    Attributes:
        prompt: number of the prompt among the person's; file: of the picture, relative to the report.
    """

    person: str
    prompt: int
    text: str
    seed: int
    arm: str
    file: str
    values: Mapping[str, float]
    statements: Mapping[str, bool]


@dataclass(frozen=True)
class Claim:
    """One sentence of the method's claim with what was found; ``holds`` is None where it cannot be told.

    Attributes:
        difference: of DP-Adapter to the arm that it is compared with, paired.
        apart: whether the two arms' own intervals do not overlap.
    """

    words: str
    holds: bool | None
    difference: Interval | None
    apart: bool | None = None


Table = Mapping[str, Mapping[str, Interval]]
"""Intervals by arm and metric."""


def summarise(rows: Sequence[TableRow]) -> dict[str, dict[str, Interval]]:
    """Mean and interval of every arm and metric; metrics without a value are left out."""
    found: dict[str, dict[str, Interval]] = {}
    for arm in dict.fromkeys(row.arm for row in rows):
        own = [row for row in rows if row.arm == arm]
        found[arm] = {metric.name: one for metric in METRICS if (one := _bootstrap_mean(own, metric)) is not None}
    return found


def _bootstrap_mean(rows: Sequence[TableRow], metric: Metric) -> Interval | None:
    having = [row for row in rows if metric.name in row.values]
    return bootstrap_interval([row.values[metric.name] for row in having], [row.person for row in having])


def paired_differences(rows: Sequence[TableRow]) -> dict[str, dict[str, Interval]]:
    """Paired differences of every other arm to plain add: same person, prompt and seed."""
    found: dict[str, dict[str, Interval]] = {}
    for arm in dict.fromkeys(row.arm for row in rows):
        if arm != ADD:
            pairs = ((metric.name, paired_difference(rows, arm, ADD, metric.name)) for metric in METRICS)
            found[arm] = {name: one for name, one in pairs if one is not None}
    return found


def paired_difference(rows: Sequence[TableRow], arm: str, against: str, metric: str) -> Interval | None:
    """Mean of the differences ``arm - against`` of one metric; None where no pair has both."""
    other = {(row.person, row.prompt, row.seed): row.values for row in rows if row.arm == against}
    values: list[float] = []
    persons: list[str] = []
    for row in rows:
        theirs = other.get((row.person, row.prompt, row.seed), {})
        if row.arm == arm and metric in row.values and metric in theirs:
            values.append(row.values[metric] - theirs[metric])
            persons.append(row.person)
    return bootstrap_interval(values, persons)


def judge_claims(rows: Sequence[TableRow]) -> list[Claim]:
    """Judges what the method claims against plain add, and identity against the base model.

    A claim holds where the paired interval lies on its side altogether: above -0.02 for identity, above or below 0 for
    the others. It fails where the interval lies altogether on the other side, and is undecided in between, or where no
    picture shows a face to compare.
    """
    means = summarise(rows)
    found = [_judge_claim(rows, means, f"identity within {NEAR} of plain add", IDENTITY, ADD, -NEAR)]
    found.append(_judge_claim(rows, means, "identity above the base model's", IDENTITY, BASE, 0.0))
    found.append(_judge_claim(rows, means, "prompt consistency above plain add's", PROMPT, ADD, 0.0))
    found.append(_judge_claim(rows, means, "base preservation above plain add's", PRESERVATION, ADD, 0.0))
    found.append(_judge_claim(rows, means, "drift outside the face below plain add's", OUTSIDE, ADD, 0.0, sign=-1))
    return found


def _judge_claim(
    rows: Sequence[TableRow], means: Table, words: str, metric: str, against: str, least: float, sign: int = 1
) -> Claim:
    found = paired_difference(rows, DP, against, metric)
    own, other = means.get(DP, {}).get(metric), means.get(against, {}).get(metric)
    apart = None if own is None or other is None else own.apart_from(other)
    faces = means.get(DP, {}).get("detected")
    unseen = metric == IDENTITY and faces is not None and faces.mean == 0  # nobody to be like anybody
    if found is None or found.low is None or found.high is None or unseen:
        return Claim(words, None, found, apart)
    worst, best = (found.low, found.high) if sign > 0 else (-found.high, -found.low)
    return Claim(words, True if worst > least else False if best < least else None, found, apart)


def statement_shares(rows: Sequence[TableRow]) -> dict[str, dict[str, float]]:
    """Share of true statements by arm and kind, where captions are measured."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        for statement, true in row.statements.items():
            counts.setdefault(row.arm, {}).setdefault(statement.split(" ", 1)[0], []).append(true)
    return {arm: {kind: sum(found) / len(found) for kind, found in kinds.items()} for arm, kinds in counts.items()}


@dataclass(frozen=True)
class Point:
    """One setting on the plane of the two scores; ``label`` says which."""

    arm: str
    label: str
    identity: float
    prompt: float


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: the points that no other beats in one score without losing in the other, by identity."""
    kept = [
        one
        for one in points
        if not any(
            other.identity >= one.identity
            and other.prompt >= one.prompt
            and (other.identity, other.prompt) != (one.identity, one.prompt)
            for other in points
        )
    ]
    return sorted(kept, key=lambda point: point.identity)
