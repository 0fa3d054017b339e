"""Rows inside an attention, where an extension for regional prompts calls its layers with others than the UNet has.

Regional Prompter calls them with a part of the rows (views of the attention's input) once for each region; Forge Couple
with copies of the conditional rows, one for each region, in one call. Either way a row says by itself which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from dp_adapter.core.types import Row, Step
from dp_adapter.errors import HostError

_SAMPLES = 16  # along positions and channels: numbers of a row that are compared


@dataclass(frozen=True)
class AttentionInputs:
    """What an attention gets: hidden_states [R, N, C], context [R, L, D]."""

    hidden_states: Tensor
    context: Tensor

    def part(self, first: int, end: int) -> AttentionInputs:
        return AttentionInputs(self.hidden_states[first:end], self.context[first:end])


def require_whole(step: Step, hidden_states: Tensor) -> None:
    """For twins and photos: raises HostError where a layer gets a part of the attention's rows [R, N, C]."""
    folding = hidden_states.ndim == 2  # our own call of the layer
    if not folding and len(hidden_states) < len(step.rows):
        raise HostError(
            f"Inside the attention there are {len(hidden_states)} rows instead of {len(step.rows)}",
            "Another extension splits the rows by prompt and negative prompt (Regional Prompter in attention mode) and "
            "would take our further rows for one of them: switch it off, or the strict text region, the identity "
            "guidance, what frees parts of the face and the photo attention.",
        )


def step_inside(step: Step, outer: AttentionInputs, inner: AttentionInputs) -> Step:
    """The step for the rows that the layers inside an attention are called with.

    Args:
        outer: what the attention was called with; inner: what its ``to_q`` and ``to_k`` got.

    Raises:
        HostError: an inner row is not one of the outer rows, or it cannot be told which are twins.
    """
    if len(inner.hidden_states) == len(step.rows):
        return step
    rows = _by_storage(outer.hidden_states, inner.hidden_states)
    if rows is None and step.twins:
        photos = len(step.references)
        if 2 * len(step.twins) != len(step.rows) - photos:
            raise HostError(
                f"Inside the attention there are {len(inner.hidden_states)} rows instead of {len(step.rows)}",
                "Another extension adds rows there (Forge Couple): switch it off, or the identity guidance, or use the "
                "blend mode 'add' without trained pathways and text emphasis.",
            )
        half, own = (len(step.rows) - photos) // 2, (len(inner.hidden_states) - photos) // 2
        first = _by_content(step.rows[:half], outer.part(0, half), inner.part(0, own))
        second = _by_content(step.rows[half : 2 * half], outer.part(half, 2 * half), inner.part(own, 2 * own))
        rows = [*first, *(None if row is None else half + row for row in second)]
        rows += range(2 * half, 2 * half + photos)
    if rows is None:
        rows = _by_content(step.rows, outer, inner)
    kinds = tuple(Row("text") if row is None else step.rows[row] for row in rows)
    tiles = None if step.tiles is None else tuple(step.tiles[row or 0] for row in rows)
    return replace(step, rows=kinds, tiles=tiles)


def _by_storage(outer: Tensor, inner: Tensor) -> list[int | None] | None:
    """The outer rows that ``inner`` is a view of, or None where it is none."""
    if inner.untyped_storage().data_ptr() != outer.untyped_storage().data_ptr() or inner.stride() != outer.stride():
        return None
    first, rest = divmod(int(inner.storage_offset() - outer.storage_offset()), outer.stride(0))
    return None if rest or first < 0 else list(range(first, first + len(inner)))


def _by_content(rows: Sequence[Row], outer: AttentionInputs, inner: AttentionInputs) -> list[int | None]:
    """Per inner row the outer row that it repeats, or None for an empty one, which only fills up.

    Rows of one picture are alike until the first text attention. There the text decides, and one that is none of
    theirs, a region's, follows the row that it divides.
    """
    taken: list[int] = []  # latest last
    found: list[int | None] = []
    for alike, same_text, empty in zip(*_compared(outer, inner), strict=True):
        if empty:
            found.append(None)
            continue
        candidates = [i for i, same in enumerate(alike) if same]
        if not candidates:
            raise HostError(
                "Inside the attention there are rows that the model was not called with",
                "Another extension changes them there; switch it off, or use the blend mode 'add' without trained "
                "pathways and text emphasis.",
            )
        with_text = [i for i in candidates if same_text[i]]
        before = [i for i in taken if i in (with_text or candidates)]
        new = [i for i in with_text if i not in taken]
        conditional = [i for i in candidates if rows[i].kind == "cond"]
        row = (new or before[-1:] or conditional or candidates)[0]
        taken = [*(i for i in taken if i != row), row]
        found.append(row)
    return found


def _compared(outer: AttentionInputs, inner: AttentionInputs) -> tuple[list[list[bool]], list[list[bool]], list[bool]]:
    """Per inner row: which outer rows it equals, which texts begin like its own, whether it is empty."""
    whole, part = _sampled(outer.hidden_states), _sampled(inner.hidden_states)
    length = min(outer.context.shape[1], inner.context.shape[1])
    texts, own = _sampled(outer.context[:, :length]), _sampled(inner.context[:, :length])
    alike = (part[:, None] == whole).flatten(2).all(2)  # [r, R]
    same_text = (own[:, None] == texts).flatten(2).all(2)  # [r, R]
    empty = (part == 0).flatten(1).all(1)  # [r]
    table = cast("list[list[bool]]", torch.cat([alike, same_text, empty[:, None]], 1).tolist())  # pyright: ignore[reportUnknownMemberType]
    count = len(whole)
    return [row[:count] for row in table], [row[count : 2 * count] for row in table], [row[-1] for row in table]


def _sampled(x: Tensor) -> Tensor:
    return x[:, :: max(1, x.shape[1] // _SAMPLES), :: max(1, x.shape[2] // _SAMPLES)]
