"""The report of a training run: one HTML file with its curves, sample grids, configuration and timing inside."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dp_adapter.errors import MissingDependencyError
from dp_adapter.training.config import Config, to_tables

_GRIDS = 8  # as many of the run's grids are shown, evenly spread
_ACROSS = 4  # curves in a line
_STYLE = """
body { font-family: system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5 }
table { border-collapse: collapse } td, th { border-bottom: 1px solid #ccc; padding: .2rem .8rem; text-align: left }
img { max-width: 100% } pre { background: #f4f4f4; padding: 1rem; overflow: auto }
"""


def write(config: Config, history: Sequence[Mapping[str, Any]], facts: Mapping[str, str]) -> Path:
    """Writes ``report.html`` into the run's folder.

    Args:
        history: lines of ``history.jsonl``; facts: more to tell, by name.
    """
    parts = [
        f"<h1>Training {html.escape(config.folder.name)}</h1>",
        _table({**facts, **_timing(history)}),
        "<h2>Losses</h2>",
        *(f'<img alt="losses of {kind}" src="{_curves(kind, history)}">' for kind in _kinds(history)),
        "<h2>Samples</h2><p>From left to right: reference, target, base model, with identity (running average of the "
        "weights); same prompt and seed.</p>",
        *(f"<h3>{path.stem}</h3><img src='{_picture(path.read_bytes())}'>" for path in _grids(config.folder)),
        "<h2>Configuration</h2>",
        f"<pre>{html.escape(json.dumps(to_tables(config), indent=2))}</pre>",
    ]
    target = config.folder / "report.html"
    body = "\n".join(parts)
    target.write_text(
        f"<!doctype html><meta charset='utf-8'><title>Training</title><style>{_STYLE}</style>{body}",
        encoding="utf-8",
    )
    return target


def _timing(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for kind in _kinds(history):
        lines = [line for line in history if line["kind"] == kind]
        paces = sorted(float(line["pace"]) for line in lines)
        facts[f"seconds a step, {kind} (median)"] = f"{paces[len(paces) // 2]:.3f}"
    if history:
        facts["steps"] = str(history[-1]["step"])
        facts["hours of steps"] = f"{history[-1]['seconds'] / 3600:.2f}"
    return facts


def _kinds(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(line["kind"]) for line in history))


def _curves(kind: str, history: Sequence[Mapping[str, Any]]) -> str:
    """All terms of a stage over its steps, each in a field of its own, as a PNG's data URL."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "The report of a training run", "train") from error
    lines = [line for line in history if line["kind"] == kind]
    names = list(dict.fromkeys(name for line in lines for name in line["losses"]))
    across, down = min(len(names), _ACROSS), -(-len(names) // _ACROSS)
    figure: Any = Figure(figsize=(3.2 * across, 2.4 * down))
    figure.subplots_adjust(left=0.18 / across, right=1 - 0.05 / across, top=1 - 0.15 / down, bottom=0.12 / down)
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(down, across, number)
        points = [(line["step"], line["losses"][name]) for line in lines if name in line["losses"]]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_title(f"{kind}: {name}", fontsize=9)
        axes.tick_params(labelsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _picture(buffer.getvalue())


def _grids(folder: Path) -> list[Path]:
    found = sorted((folder / "samples").glob("step-*.png"))
    if len(found) <= _GRIDS:
        return found
    return [found[round(i * (len(found) - 1) / (_GRIDS - 1))] for i in range(_GRIDS)]


def _picture(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _table(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in facts.items()
    )
    return f"<table>{rows}</table>"
