"""The report: ``results.json`` for programs, ``index.html`` for people."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dp_adapter import __version__
from dp_adapter.errors import MissingDependencyError
from dp_adapter.evaluation import pareto_plot, score_summary
from dp_adapter.evaluation.bootstrap import DRAWS, LEVEL, Interval
from dp_adapter.evaluation.picture_scores import METRICS, Metric
from dp_adapter.evaluation.protocol import ADD, EvaluationPlan
from dp_adapter.evaluation.score_summary import Claim, Point, TableRow

FORMAT = 1
SHOWN_PEOPLE, SHOWN_PROMPTS = 4, 6


@dataclass(frozen=True)
class EvaluationResults:
    """Everything that an evaluation found.

    Attributes:
        config: what was asked for and with which files and versions, plain JSON values.
        scale: what the judge gives for photos of one person and of two: ``same``, ``different``, None where unknown.
        notes: what the reader has to know, in sentences.
    """

    plan: EvaluationPlan
    rows: Sequence[TableRow]
    sweep: Sequence[Point]
    config: Mapping[str, Any]
    scale: Mapping[str, float | None]
    notes: Sequence[str] = field(default_factory=tuple[str, ...])


def require() -> None:
    """Raises MissingDependencyError for what the report needs: before the work, not after it."""
    pareto_plot.require()
    if importlib.util.find_spec("jinja2") is None:
        raise MissingDependencyError("jinja2", "The report's page", "eval")


def write(folder: Path, results: EvaluationResults) -> Path:
    """Writes results.json, pareto.png and index.html; returns the page."""
    import jinja2

    labels = {arm.name: arm.label for arm in results.plan.arms}
    means, against = score_summary.summarise(results.rows), score_summary.paired_differences(results.rows)
    found, shares = score_summary.judge_claims(results.rows), score_summary.statement_shares(results.rows)
    facts = _make_facts(results, means, against, found, shares)
    (folder / "results.json").write_text(json.dumps(facts, indent=2, allow_nan=False), encoding="utf-8")
    if results.sweep:
        pareto_plot.draw_pareto(folder / "pareto.png", results.sweep, labels)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html").render(
        version=__version__,
        results=results,
        metrics=[metric for metric in METRICS if any(metric.name in found for found in means.values())],
        labels=labels,
        means=means,
        against=against,
        plain=ADD,
        claims=found,
        shares=shares,
        kinds=list(dict.fromkeys(kind for kinds in shares.values() for kind in kinds)),
        shown=_choose_grids(results.rows),
        cell=format_cell,
        config=json.dumps(results.config, indent=2),
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def format_cell(one: Interval | None, metric: Metric | None = None, sign: bool = False) -> str:
    """A mean with its interval, as in ``0.512 (0.480 to 0.544)``."""
    if one is None:
        return "–"
    form = f"{'+' if sign else ''}.{3 if metric is None else metric.digits}f"
    text = format(one.mean, form)
    return text if one.low is None or one.high is None else f"{text} ({one.low:{form}} to {one.high:{form}})"


def _choose_grids(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """The grids: for some persons, for some prompts, the first seed's picture of every arm."""
    people = list(dict.fromkeys(row.person for row in rows))[:SHOWN_PEOPLE]
    grids: list[dict[str, Any]] = []
    for person in people:
        own = [row for row in rows if row.person == person and row.prompt < SHOWN_PROMPTS]
        lines: list[dict[str, Any]] = []
        for prompt in dict.fromkeys(row.prompt for row in own):
            here = [row for row in own if row.prompt == prompt]
            first = min(row.seed for row in here)
            pictures = {row.arm: row for row in here if row.seed == first}
            lines.append({"text": here[0].text, "pictures": pictures})
        grids.append({"person": person, "lines": lines})
    return grids


def _make_facts(
    results: EvaluationResults,
    means: score_summary.Table,
    against: score_summary.Table,
    found: Sequence[Claim],
    shares: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "config": dict(results.config),
        "intervals": {"level": LEVEL, "draws": DRAWS, "method": "percentile bootstrap over persons"},
        "judge_scale": dict(results.scale),
        "notes": list(results.notes),
        "arms": {arm.name: arm.label for arm in results.plan.arms},
        "metrics": {metric.name: {"label": metric.label, "better": metric.better} for metric in METRICS},
        "means": {arm: {name: asdict(one) for name, one in row.items()} for arm, row in means.items()},
        "differences_to_plain_add": {
            arm: {name: asdict(one) for name, one in row.items()} for arm, row in against.items()
        },
        "claims": [asdict(claim) for claim in found],
        "statements": {arm: dict(kinds) for arm, kinds in shares.items()},
        "sweep": [asdict(point) for point in results.sweep],
        "pictures": [asdict(row) for row in results.rows],
    }
