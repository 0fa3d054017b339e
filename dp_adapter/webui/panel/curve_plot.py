"""The weight over a generation's progress as a small inline SVG."""

from __future__ import annotations

import html

from dp_adapter.errors import DPAdapterError
from dp_adapter.settings.curve import MAX_WEIGHT, Curve

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 360, 110, 26, 18, 6


def draw_curve(text: str, start: float = 0.0, end: float = 1.0) -> str:
    """SVG of a curve's text between ``start`` and ``end``; where it cannot be read, the words that say why."""
    try:
        curve = Curve.parse(text)
    except DPAdapterError as error:
        problem = str(error).removeprefix("curve: ")
        return f'<div class="dp-adapter-words dp-adapter-error"><div>{html.escape(problem)}</div></div>'
    start = min(start, end)
    knots = sorted({start, end, *(p for p, _ in curve.points if start < p < end)})
    points = [(_x(p), _y(curve.at(p))) for p in knots]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    area = f"{points[0][0]:.1f},{_y(0):.1f} {line} {points[-1][0]:.1f},{_y(0):.1f}"
    dots = "".join(
        f'<circle cx="{_x(p):.1f}" cy="{_y(w):.1f}" r="2.5"><title>{w:g}@{p:g}</title></circle>'
        for p, w in curve.points
    )
    return (
        f'<svg class="dp-adapter-curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Weight curve">'
        f'{_draw_grid()}<polygon points="{area}"/><polyline points="{line}"/>{dots}</svg>'
    )


def _x(progress: float) -> float:
    return _LEFT + progress * (_WIDTH - _LEFT - 8)


def _y(weight: float) -> float:
    return _TOP + (1 - weight / MAX_WEIGHT) * (_HEIGHT - _TOP - _BOTTOM)


def _draw_grid() -> str:
    lines: list[str] = []
    for weight in (0, 1, 2):
        y = _y(weight)
        lines.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_x(1):.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{weight}</text>')
    for progress in (0, 0.25, 0.5, 0.75, 1):
        x = _x(progress)
        lines.append(f'<line x1="{x:.1f}" y1="{_y(2):.1f}" x2="{x:.1f}" y2="{_y(0):.1f}"/>')
        lines.append(f'<text x="{x:.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{progress:g}</text>')
    return f"<g>{''.join(lines)}</g>"
