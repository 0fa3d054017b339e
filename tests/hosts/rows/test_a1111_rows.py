"""Which rows a call of the UNet has: every way in which AUTOMATIC1111's sampler cuts a denoising step into calls."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dp_adapter.core.types import Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.rows.a1111_rows import CfgRows

CHUNK = 77
SIZE = (16, 24)


def text(seed: int, chunks: int = 1) -> Tensor:
    return torch.randn(chunks * CHUNK, 8, generator=torch.Generator().manual_seed(seed))


def latents(rows: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.zeros(rows, 4, *size)


def conds(*per_picture: int) -> list[list[tuple[int, float]]]:
    """``conds_list`` for pictures with so many conditional rows each."""
    numbers = iter(range(sum(per_picture)))
    return [[(next(numbers), 1.0) for _ in range(count)] for count in per_picture]


class Step:
    """One denoising step: its texts, announced to ``rows``."""

    def __init__(
        self, rows: CfgRows, cond: Sequence[Tensor], uncond: Sequence[Tensor], per_picture: Sequence[int]
    ) -> None:
        self.rows = rows
        self.cond, self.uncond = torch.stack(list(cond)), torch.stack(list(uncond))
        self.per_picture = per_picture
        self.again()

    def again(self) -> None:
        count = len(self.cond) + len(self.uncond)
        self.rows.announce(conds(*self.per_picture), latents(count), self.cond, self.uncond)

    def call(self, context: Tensor | Sequence[Tensor], size: tuple[int, int] = SIZE) -> list[str]:
        """The rows that a call with these texts has, as ``c0`` for a conditional row of the first picture."""
        stacked = context if isinstance(context, Tensor) else torch.stack(list(context))
        known = self.rows.of(latents(len(stacked), size), stacked)
        assert known is not None
        assert known.whole == (size == SIZE)
        return [f"{row.kind[0]}{row.sample}" for row in known.rows]

    @property
    def joined(self) -> Tensor:
        return torch.cat([self.cond, self.uncond])


def one(rows: CfgRows | None = None) -> Step:
    return Step(rows or CfgRows(), [text(1)], [text(2)], [1])


def two() -> Step:
    """Two pictures with prompts of their own and one negative prompt."""
    return Step(CfgRows(), [text(1), text(3)], [text(2), text(2)], [1, 1])


def two_alike() -> Step:
    return Step(CfgRows(), [text(1), text(1)], [text(2), text(2)], [1, 1])


def composed() -> Step:
    """Two pictures; "a AND b" and "c"."""
    return Step(CfgRows(), [text(1), text(3), text(4)], [text(2), text(2)], [2, 1])


def test_joined_call() -> None:
    assert one().call(one().joined) == ["c0", "u0"]
    assert two().call(two().joined) == ["c0", "c1", "u0", "u1"]
    assert two_alike().call(two_alike().joined) == ["c0", "c1", "u0", "u1"]
    assert composed().call(composed().joined) == ["c0", "c0", "c1", "u0", "u1"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_calls_of_any_size(chunk: int) -> None:
    step = composed()
    seen = [row for part in step.joined.split(chunk) for row in step.call(part)]
    assert seen == ["c0", "c0", "c1", "u0", "u1"]


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_calls_of_any_size_know_which_of_the_joined_prompts_they_have(chunk: int) -> None:
    step = composed()
    calls = [step.rows.of(latents(len(part)), part) for part in step.joined.split(chunk)]
    rows = [row for known in calls if known for row in known.rows]
    assert rows[:3] == [Row("cond", 0, 0), Row("cond", 0, 1), Row("cond", 1, 0)]


def test_lengths_differ_and_are_not_padded() -> None:
    step = Step(CfgRows(), [text(1, 2), text(3, 2)], [text(2)] * 2, [1, 1])
    assert step.call(step.cond) == ["c0", "c1"]
    assert step.call(step.uncond) == ["u0", "u1"]


def test_padded_texts_are_still_themselves() -> None:
    """ "Pad prompt/negative prompt" appends empty chunks, its old form repeats the last token or cuts."""
    step = Step(CfgRows(), [text(1, 2)], [text(2)], [1])
    padded = torch.cat([step.uncond, text(9)[None]], 1)
    assert step.call(torch.cat([step.cond, padded])) == ["c0", "u0"]
    assert step.call(padded) == ["u0"], "once more, by its text"
    step = Step(CfgRows(), [text(1)], [text(2, 2)], [1])
    assert step.call(torch.cat([step.cond, step.uncond[:, :CHUNK]])) == ["c0", "u0"]
    assert step.call(step.uncond[:, :CHUNK]) == ["u0"]


def test_skipped_uncond_does_not_shift_the_next_step() -> None:
    step = two()
    for _ in range(3):
        assert step.call(step.cond) == ["c0", "c1"]
        step.again()
        assert step.call(step.joined) == ["c0", "c1", "u0", "u1"]
        step.again()


def test_second_order_samplers_announce_every_call() -> None:
    step = one()
    for _ in range(4):
        assert step.call(step.joined) == ["c0", "u0"]
        step.again()


def test_same_prompt_and_negative_prompt_go_by_order() -> None:
    step = Step(CfgRows(), [text(1)], [text(1)], [1])
    assert step.call(step.joined) == ["c0", "u0"]
    step.again()
    assert [step.call(step.cond), step.call(step.uncond)] == [["c0"], ["u0"]]


def test_a_text_that_another_extension_changed_goes_by_order() -> None:
    step = two()
    assert step.call(step.joined + 0.1) == ["c0", "c1", "u0", "u1"]
    step.again()
    assert step.call(torch.cat([step.cond + 0.1, step.uncond])) == ["c0", "c1", "u0", "u1"]


def test_another_order_goes_by_text() -> None:
    step = two()
    assert step.call(torch.cat([step.uncond, step.cond])) == ["u0", "u1", "c0", "c1"]


def test_one_more_call_after_all_rows_goes_by_text() -> None:
    """Self-attention guidance asks for the unconditional rows once more, perturbed attention for the others."""
    step = two()
    step.call(step.joined)
    assert step.call(step.uncond) == ["u0", "u1"]
    assert step.call(step.cond) == ["c0", "c1"]


@pytest.mark.parametrize("alike", [False, True])
def test_tiles_have_all_rows_one_tile_after_the_other(alike: bool) -> None:
    step = two_alike() if alike else two()
    for tiles in (1, 3):
        seen = step.call(step.joined.repeat(tiles, 1, 1), (8, 8))
        assert seen == ["c0", "c1", "u0", "u1"] * tiles


def test_tiles_of_split_calls() -> None:
    step = one()
    assert step.call(step.cond.repeat(2, 1, 1), (8, 8)) == ["c0", "c0"]
    assert step.call(step.uncond.repeat(2, 1, 1), (8, 8)) == ["u0", "u0"]


def test_a_foreign_text_in_a_tile_is_refused() -> None:
    with pytest.raises(HostError, match="neither the prompt's"):
        one().call([text(7), text(2)], (8, 8))


def test_edit_models_have_the_unconditional_rows_twice() -> None:
    """Prompt and picture, picture only, neither; the last two have the negative prompt."""
    step, rows = two(), CfgRows()
    rows.announce(conds(1, 1), latents(6), step.cond, step.uncond)
    known = rows.of(latents(6), torch.cat([step.cond, step.uncond, step.uncond]))
    assert known is not None
    kinds = [Row("cond", 0), Row("cond", 1), *[Row("uncond", 0), Row("uncond", 1)] * 2]
    assert list(known.rows) == kinds
    rows.announce(conds(1, 1), latents(6), step.cond, step.uncond)
    parts = [rows.of(latents(2), context) for context in (step.cond, step.uncond, step.uncond)]
    assert [row for part in parts if part for row in part.rows] == kinds


def test_a_call_before_the_first_step_is_left_alone() -> None:
    rows = CfgRows()
    assert rows.of(latents(2), one().joined) is None
    assert one(rows).call(one().joined) == ["c0", "u0"]


def test_sdxl_texts_are_taken_out_before_the_host_pads_them() -> None:
    cond, uncond = {"crossattn": text(1, 2)[None]}, {"crossattn": text(2)[None]}
    rows = CfgRows()
    rows.announce(conds(1), latents(2), cond, uncond)
    uncond["crossattn"] = torch.cat([text(5)[None], text(5)[None]], 1)
    known = rows.of(latents(1, (8, 8)), text(2)[None])
    assert known is not None
    assert known.rows == (Row("uncond", 0),)


def test_half_precision_texts_are_compared_as_the_unet_gets_them() -> None:
    step = one()
    assert step.call(step.joined.half()) == ["c0", "u0"]
    assert step.call(step.uncond.half()) == ["u0"]


@pytest.mark.parametrize(
    ("per_picture", "rows", "uncond"),
    [((1, 1), 4, 1), ((2,), 4, 1), ((1,), 1, 1), ((1, 1), 5, 2)],
    ids=["one negative text too few", "one picture, two texts", "no unconditional row", "half a picture"],
)
def test_an_inconsistent_announcement_stops_the_call_not_the_hook(
    per_picture: tuple[int, ...], rows: int, uncond: int
) -> None:
    told = CfgRows()
    cond = torch.stack([text(i) for i in range(len(per_picture))])
    told.announce(conds(*per_picture), latents(rows), cond, torch.stack([text(9)] * uncond))
    with pytest.raises(HostError, match="which row is which"):
        told.of(latents(1), cond[:1])
