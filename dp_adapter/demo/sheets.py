"""Writes the README's pictures: one sheet for each section."""

from __future__ import annotations

from pathlib import Path

from dp_adapter.demo.drawing import Cell, draw_heat, draw_region, write_sheet
from dp_adapter.demo.sections import CaptionedPicture, Comparison, Story, Strip


def write(folder: Path, story: Story) -> list[Path]:
    """Writes ``arms.png``, ``drift.png``, ``modes.png`` and ``sweep.png``, those whose section was made."""
    made: list[Path] = []
    if story.comparisons:
        made.append(write_sheet(folder / "arms.png", [_arms(*pair) for pair in story.by_prompt().items()]))
        made.append(write_sheet(folder / "drift.png", [_drift(one) for one in next(iter(story.by_prompt().values()))]))
    if story.edits:
        made.append(write_sheet(folder / "modes.png", [_strip(one, one.title) for one in story.edits]))
    if story.sweep is not None:
        made.append(write_sheet(folder / "sweep.png", [_strip(story.sweep, f"“{story.sweep.prompt}”, by weight")]))
    return made


def describe_likeness(frame: CaptionedPicture) -> str:
    """Words for the likeness."""
    return "no face found" if frame.likeness is None else f"likeness {frame.likeness:.2f}"


def _arms(prompt: str, some: list[Comparison]) -> tuple[str, list[Cell]]:
    """The base model's picture once, then for each person the photo and the other arms."""
    cells = [Cell("base model", some[0].frames["base model"].picture)]
    for one in some:
        cells.append(Cell(f"photo: {one.person.name}", one.person.shown))
        cells += [
            Cell(f"{arm}\n{describe_likeness(frame)}", frame.picture)
            for arm, frame in one.frames.items()
            if arm != "base model"
        ]
    return f"“{prompt}”", cells


def _drift(one: Comparison) -> tuple[str, list[Cell]]:
    largest = max(float(values.max()) for values in one.heat.values())
    cells = [Cell("DP-Adapter's region", draw_region(one.frames["DP-Adapter"].picture, one.region))]
    for arm, values in one.heat.items():
        if arm != "base model":
            outside = one.drift[arm].outside
            moved = "" if outside is None else f"\noutside the region {outside:.4f}"
            cells.append(Cell(f"{arm} against base{moved}", draw_heat(values, largest)))
    return f"{one.person.name}: “{one.prompt}”", cells


def _strip(one: Strip, heading: str) -> tuple[str, list[Cell]]:
    cells = [Cell("photo", one.reference)]
    for caption, frame in one.frames.items():
        words = f"\n+ {frame.words}" if frame.words else ""
        cells.append(Cell(f"{caption}\n{describe_likeness(frame)}{words}", frame.picture))
    return heading, cells
