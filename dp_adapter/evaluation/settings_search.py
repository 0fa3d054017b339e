"""Which settings to try with a budget of pictures: successive halving over a small table of candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dp_adapter.evaluation.picture_metrics import harmonic

TryCandidate = Callable[[Mapping[str, float], int], tuple[float, float]]
"""Makes a candidate's picture of a number (which decides prompt and seed) and gives identity and prompt scores."""

FIRST = 2
"""Pictures of each candidate in the first round."""


@dataclass
class TuningCandidate:
    """Settings on trial: changed fields by dotted path, and both scores of every picture made so far."""

    changes: Mapping[str, float]
    scores: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    @property
    def label(self) -> str:
        names = {"weight": "", "span.start": "start ", "text_emphasis": "emphasis ", "gate.up": "gate "}
        return ", ".join(f"{names.get(path, path + ' ')}{value:g}" for path, value in self.changes.items())

    @property
    def count(self) -> int:
        return len(self.scores)

    @property
    def means(self) -> tuple[float, float]:
        """Identity and prompt consistency."""
        return (sum(one for one, _ in self.scores) / self.count, sum(two for _, two in self.scores) / self.count)

    @property
    def harmonic(self) -> float:
        """Harmonic mean of both means."""
        return harmonic(*self.means)


def make_candidates(weight: float, budget: int) -> list[TuningCandidate]:
    """The settings to try, the most telling first, as many as the budget gives two pictures each and a second round.

    Weights around the asked-for one; then a late start, which leaves the layout to the text; then the text emphasised
    outside the face; then a narrower gate on the way up.
    """
    around = [round(min(max(weight * factor, 0.05), 2.0), 2) for factor in (1.0, 0.75, 1.25, 0.5, 1.5)]
    table: list[dict[str, float]] = [{"weight": one} for one in around]
    table += [{"weight": one, "span.start": start} for one in around[:3] for start in (0.15, 0.3)]
    table += [{"weight": one, "text_emphasis": 0.3} for one in around[:3]]
    table += [{"weight": one, "gate.up": 1.5} for one in around[:3]]
    unique = list({tuple(sorted(changes.items())): changes for changes in table}.values())
    return [TuningCandidate(changes) for changes in unique[: max(2, budget * 2 // 3 // FIRST)]]


def search(pool: Sequence[TuningCandidate], budget: int, attempt: TryCandidate) -> list[TuningCandidate]:
    """Gives every candidate two pictures, then the better half twice as many, and so on while the budget lasts.

    The better half is the front (what no other beats in both scores), filled up by harmonic mean. All candidates of a
    round are judged on the same prompts and seeds.

    Returns:
        All candidates that have pictures.
    """
    left, remaining, wanted = budget, list(pool), FIRST
    while remaining:
        for candidate in remaining:
            while candidate.count < wanted and left > 0:
                candidate.scores.append(attempt(candidate.changes, candidate.count))
                left -= 1
        if left <= 0 or len(remaining) == 1:
            break
        remaining = _choose_better_half(remaining)
        wanted *= 2
    return [candidate for candidate in pool if candidate.count]


def _choose_better_half(remaining: Sequence[TuningCandidate]) -> list[TuningCandidate]:
    """Half of the candidates."""
    beaten = {
        id(one): sum(other.means[0] >= one.means[0] and other.means[1] >= one.means[1] for other in remaining) - 1
        for one in remaining
    }
    ranked = sorted(remaining, key=lambda one: (beaten[id(one)] > 0, -one.harmonic))
    return ranked[: max(1, (len(remaining) + 1) // 2)]
