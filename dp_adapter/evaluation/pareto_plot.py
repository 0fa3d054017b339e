"""The report's plots, by matplotlib without a display."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dp_adapter.errors import MissingDependencyError
from dp_adapter.evaluation.score_summary import Point, pareto_front

_COLOURS = ("#d95f02", "#1b7db5", "#7a7a7a", "#2a9d5c", "#a05195", "#e0a800")


def require() -> None:
    """Raises MissingDependencyError where matplotlib is not installed: before the work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "The report's plots", "eval")


def draw_pareto(path: Path, points: Sequence[Point], labels: Mapping[str, str], single: bool = False) -> None:
    """Writes the plane of prompt consistency (x) and identity (y) with a line for each arm and the Pareto front.

    Args:
        labels: of the arms; an arm's points are joined in their order unless ``single``.
    """
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, arm in enumerate(dict.fromkeys(point.arm for point in points)):
        own = [point for point in points if point.arm == arm]
        colour = _COLOURS[number % len(_COLOURS)]
        line = "" if single or len(own) == 1 else "-"
        axes.plot(
            [p.prompt for p in own], [p.identity for p in own], "o" + line, color=colour, label=labels.get(arm, arm)
        )
        for point in own:
            axes.annotate(
                point.label, (point.prompt, point.identity), textcoords="offset points", xytext=(5, 4), fontsize=8
            )
    best = pareto_front(points)
    axes.plot(
        [p.prompt for p in best],
        [p.identity for p in best],
        color="black",
        linewidth=6,
        alpha=0.12,
        label="Pareto front",
    )
    axes.set_xlabel("prompt consistency")
    axes.set_ylabel("identity")
    axes.legend(loc="best", fontsize=8)
    figure.savefig(path, dpi=140)
