"""What Forge's words about a call mean: rows, progress, places, twins."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dp_adapter.core.types import Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import forge_options
from dp_adapter.hosts.attach.sites import Base, site_names


def rows_of(spelled: str) -> list[Row]:
    """``u0 c1`` -> an unconditional row of picture 0, a conditional one of picture 1.

    ``c1b`` is picture 1 with the second of the prompts that AND joins, ``c1?`` with one that is not known.
    """
    parts: dict[str, int | None] = {"": 0, "a": 0, "b": 1, "c": 2, "?": None}
    return [Row("uncond" if word[0] == "u" else "cond", int(word[1]), parts[word[2:]]) for word in spelled.split()]


def marks(kinds: Sequence[int], batch: int) -> dict[str, Any]:
    return {"cond_or_uncond": list(kinds), "cond_mark": torch.tensor([k for k in kinds for _ in range(batch)]).float()}


LAYOUTS = [
    ([1, 0], 1, 2, "u0 c0"),
    ([0, 1], 1, 2, "c0 u0"),
    ([1, 0], 2, 4, "u0 u1 c0 c1"),
    ([1, 0, 0], 1, 3, "u0 c0? c0?"),  # AND, of which nobody said how many
    ([1, 0, 0], 2, 6, "u0 u1 c0? c1? c0? c1?"),
    ([0], 2, 2, "c0 c1"),  # split calls, cfg 1, PAG's extra call
    ([1], 1, 1, "u0"),
    ([1, 0], 1, 6, "u0 c0 u0 c0 u0 c0"),  # three tiles
    ([1, 0], 2, 8, "u0 u1 c0 c1 u0 u1 c0 c1"),  # two tiles of two pictures
]


@pytest.mark.parametrize(("kinds", "batch", "count", "expected"), LAYOUTS)
@pytest.mark.parametrize("marked", [True, False], ids=["cond_mark", "reForge"])
def test_rows_of_the_samplers(kinds: list[int], batch: int, count: int, expected: str, marked: bool) -> None:
    options = marks(kinds, batch)
    if not marked:
        del options["cond_mark"]
    assert forge_options.sampler_rows(batch)(options, count) == rows_of(expected)


AND_LAYOUTS = [
    ([1, 0, 0], 1, 2, "u0 c0b c0a"),
    ([1, 0, 0, 0], 2, 3, "u0 u1 c0c c1c c0b c1b c0a c1a"),
    ([0, 0], 1, 2, "c0b c0a"),
    ([0], 1, 2, "c0?"),  # split calls
    ([1, 0], 1, 2, "u0 c0?"),
]


@pytest.mark.parametrize(("kinds", "batch", "prompts", "expected"), AND_LAYOUTS)
def test_prompts_joined_by_and_come_from_the_last_to_the_first(
    kinds: list[int], batch: int, prompts: int, expected: str
) -> None:
    rows = forge_options.sampler_rows(batch, prompts)
    assert rows(marks(kinds, batch), len(kinds) * batch) == rows_of(expected)


def test_a_call_for_fewer_pictures_than_the_batch_is_read_from_its_marks() -> None:
    assert forge_options.sampler_rows(2)(marks([1, 0], 1), 2) == rows_of("u0 c0")
    assert forge_options.sampler_rows(4)(marks([1, 0], 1), 6) == rows_of("u0 c0 u0 c0 u0 c0")


@pytest.mark.parametrize("options", [{"cond_or_uncond": [1, 0]}, marks([1, 0], 1)])
def test_rows_that_cannot_be_told_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(HostError, match=r"3 rows for 1 pictures with 2 prompts.*tiles"):
        forge_options.sampler_rows(1)(options, 3)


class Table:
    """Discrete schedule: a sigma is the nearest place in a table, as in both families of hosts."""

    def __init__(self, last: float = 14.6) -> None:
        self.log_sigmas = torch.linspace(-3.5, torch.tensor(last).log().item(), 1000)
        self.sigma_min, self.sigma_max = self.log_sigmas[0].exp(), self.log_sigmas[-1].exp()

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.log() - self.log_sigmas[:, None]).abs().argmin(0).view(sigma.shape)


class Edm:
    """Continuous schedule of EDM models: timesteps are logarithms."""

    sigma_min, sigma_max = torch.tensor(0.002), torch.tensor(120.0)

    def timestep(self, sigma: Tensor) -> Tensor:
        return 0.25 * sigma.log()


@pytest.mark.parametrize("schedule", [Table(), Table(last=4500.0), Edm()], ids=["discrete", "zero snr", "edm"])
def test_progress_runs_from_noise_to_picture(schedule: Any) -> None:
    progress = forge_options.progress_of(schedule)
    low, high = schedule.sigma_min.log(), schedule.sigma_max.log()
    for share in (0.0, 0.25, 0.5, 1.0):
        sigmas = (high + share * (low - high)).exp().expand(3)
        assert progress(schedule.timestep(sigmas).float()) == pytest.approx(share, abs=1e-3)
    assert progress(schedule.timestep(schedule.sigma_max.reshape(1) * 2).float()) == 0.0
    assert progress(schedule.timestep(schedule.sigma_min.reshape(1) / 2).float()) == 1.0


@pytest.mark.parametrize(("base", "middle"), [("sd15", 15), ("sdxl", 60)])
def test_every_site_has_its_place(base: Base, middle: int) -> None:
    places = [forge_options.block_in(name.ldm) for name in site_names(base)]
    assert len(set(places)) == len(places)
    assert places[0] == ("input", 1 if base == "sd15" else 4, 0)
    assert places[middle] == ("middle", 0, 0)
    assert forge_options.block_of({"block": ("middle", 0), "block_index": 0}) == places[middle]


def test_twins_are_described_like_their_rows() -> None:
    given = {
        **marks([1, 0], 2),
        "cond_indices": [2, 3],
        "uncond_indices": [0, 1],
        "uuids": ["a", "b"],
        "sigmas": "kept",
    }
    twice = forge_options.repeated_options(given, 4, range(4))
    assert twice["cond_or_uncond"] == [1, 0, 1, 0]
    assert twice["cond_mark"].tolist() == [1, 1, 0, 0] * 2
    assert (twice["cond_indices"], twice["uncond_indices"]) == ([2, 3, 6, 7], [0, 1, 4, 5])
    assert (twice["uuids"], twice["sigmas"]) == (["a", "b", "a", "b"], "kept")
    assert given["cond_or_uncond"] == [1, 0]
    assert forge_options.repeated_options({"cond_or_uncond": [0]}, 1, [0]) == {"cond_or_uncond": [0, 0]}


def test_twins_of_some_rows_are_described_like_these() -> None:
    given = {**marks([1, 0], 2), "cond_indices": [2, 3], "uncond_indices": [0, 1], "uuids": ["a", "b"]}
    more = forge_options.repeated_options(given, 4, [2, 3])
    assert more["cond_or_uncond"] == [1, 0, 0] and more["uuids"] == ["a", "b", "b"]
    assert more["cond_mark"].tolist() == [1, 1, 0, 0, 0, 0]
    assert (more["cond_indices"], more["uncond_indices"]) == ([2, 3, 4, 5], [0, 1])


def test_patches_go_around_those_that_are_there() -> None:
    given = {"patches": {"a": [1], "b": [2]}, "block": "kept"}
    assert forge_options.with_patches(given, {"a": 0, "c": 5}, {"a": 9, "b": 3}) == {  # type: ignore[dict-item]
        "patches": {"a": [0, 1, 9], "b": [2, 3], "c": [5]},
        "block": "kept",
    }
    assert given == {"patches": {"a": [1], "b": [2]}, "block": "kept"}


def test_options_with_photos_behind() -> None:
    """Two pictures, a prompt and a negative one, and a chunk of photos."""
    options = {
        "cond_or_uncond": [0, 1],
        "uuids": ["a", "b"],
        "cond_mark": torch.tensor([0.0, 0.0, 1.0, 1.0]),
        "cond_indices": [0, 1],
        "uncond_indices": [2, 3],
    }
    wider = forge_options.extended_options(options, 6, 2, 2)
    assert wider["cond_or_uncond"] == [0, 1, 1] and wider["uuids"] == ["a", "b", "b"]
    assert wider["cond_mark"].tolist() == [0, 0, 1, 1, 1, 1]
    assert wider["cond_indices"] == [0, 1] and wider["uncond_indices"] == [2, 3, 4, 5]
    assert options["cond_or_uncond"] == [0, 1] and len(options["cond_mark"]) == 4


def _edm_sigma(timestep: Tensor) -> Tensor:
    return (timestep / 0.25).exp()


def test_noise_level_of_edm_models() -> None:
    """Their timestep is log(sigma) / 4, their data's deviation 0.5."""
    schedule = SimpleNamespace(sigma=_edm_sigma, sigma_data=0.5)
    level = forge_options.noise_level_of(schedule)
    assert level is not None
    assert level(torch.tensor([0.0, 0.0])) == pytest.approx((1.25**-0.5, 1.25**-0.5))
    assert forge_options.noise_level_of(SimpleNamespace()) is None
