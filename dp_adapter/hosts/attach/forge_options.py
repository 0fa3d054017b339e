"""What Forge says about one call of its UNet: which rows it holds, how far sampling is, where in the UNet it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dp_adapter.core.reference_photo import NoiseLevel, shares
from dp_adapter.core.types import Row
from dp_adapter.errors import HostError

Options = Mapping[str, Any]
Rows = Sequence[Row] | Callable[[Options, int], Sequence[Row]]
BlockKey = tuple[str, int, int]
Patch = Callable[..., Any]


def sampler_rows(batch: int, prompts: int = 1) -> Callable[[Options, int], list[Row]]:
    """Rows as Forge's samplers order them: for every entry of ``cond_or_uncond``, one row per picture.

    Args:
        batch: pictures made at once, ``x.shape[0]`` of ``process_before_every_sampling``.
        prompts: how many AND joins for each picture. A call takes them from the last to the first
            (``to_batch_temp.reverse()`` in sampling_function.py); of a call with some of them it is not known which.
    """

    def rows(options: Options, count: int) -> list[Row]:
        kinds: list[int] = list(options["cond_or_uncond"])
        whole, last = kinds.count(0) == prompts, prompts - 1
        parts = [last - kinds[:place].count(0) if whole else None for place in range(len(kinds))]
        layout = [_row(kind, i, part) for kind, part in zip(kinds, parts, strict=True) for i in range(batch)]
        if count % len(layout) == 0:
            return layout * (count // len(layout))  # tiles come one after another, each with all rows
        mark: Tensor | None = options.get("cond_mark")
        if mark is None or count % len(mark):
            raise HostError(
                f"The UNet was called with {count} rows for {batch} pictures with {len(kinds)} prompts each",
                "Another extension calls the model with parts of the batch (Regional Prompter's latent mode, for "
                "instance); switch off what samples in tiles or parts.",
            )
        chunk = len(mark) // len(kinds)
        marks = cast("list[float]", mark.repeat(count // len(mark)).tolist())  # pyright: ignore[reportUnknownMemberType]
        return [_row(int(kind), i % chunk, 0 if prompts == 1 else None) for i, kind in enumerate(marks)]

    return rows


def _row(kind: int, sample: int, part: int | None) -> Row:
    return Row("uncond", sample) if kind == 1 else Row("cond", sample, part)


def progress_of(schedule: Any) -> Callable[[Tensor], float]:
    """A function from the UNet's timesteps [R] to progress.

    Args:
        schedule: ``unet.model.predictor`` or ``unet.model.model_sampling``. In most models its timesteps are places in
            a table, in EDM models (CosXL, Playground) logarithms of sigma; between its ends they are even either way.
    """
    last, first = (_number(schedule.timestep(end.reshape(1))) for end in (schedule.sigma_min, schedule.sigma_max))

    def progress(timesteps: Tensor) -> float:
        # The rows of one call share a timestep in every sampler of Forge.
        return min(max(1 - (_number(timesteps) - last) / (first - last), 0.0), 1.0)

    return progress


def noise_level_of(schedule: Any) -> NoiseLevel | None:
    """How noisy the UNet's input is at its timesteps; None where the schedule does not say.

    Args:
        schedule: as for ``progress_of``. EDM models scale their input for data with another deviation than 1.
    """
    if not hasattr(schedule, "sigma"):
        return None
    data = float(getattr(schedule, "sigma_data", 1.0))

    def level(timesteps: Tensor | float) -> tuple[float, float]:
        first = timesteps.flatten()[:1] if isinstance(timesteps, Tensor) else torch.tensor([float(timesteps)])
        return shares(_number(schedule.sigma(first)), data)

    return level


def _number(values: Tensor) -> float:
    return float(values.flatten()[0])


def block_of(options: Options) -> BlockKey:
    """Block kind, its number, and depth inside its transformer."""
    kind, number = options["block"]
    return kind, number, options["block_index"]


def block_in(path: str) -> BlockKey:
    """The same from a module path: ``input_blocks.4.1.transformer_blocks.0`` -> ``("input", 4, 0)``."""
    parts = path.split(".")
    kind = parts[0].removesuffix("_blocks").removesuffix("_block")
    return kind, 0 if kind == "middle" else int(parts[1]), int(parts[-1])


def with_patches(options: Options, first: Mapping[str, Patch], last: Mapping[str, Patch]) -> dict[str, Any]:
    """A copy of a call's options with patches before and behind those that are there."""
    patches: dict[str, Any] = dict(options.get("patches", {}))
    for name, patch in first.items():
        patches[name] = [patch, *patches.get(name, [])]
    for name, patch in last.items():
        patches[name] = [*patches.get(name, []), patch]
    return {**options, "patches": patches}


def repeated_options(options: Options, rows: int, numbers: Sequence[int]) -> dict[str, Any]:
    """A copy of a call's options that describes these of its rows once more, behind all others.

    Args:
        numbers: of rows, whole entries of ``cond_or_uncond``.
    """
    more = dict(options)
    chunk = max(1, rows // max(1, len(options["cond_or_uncond"])))
    for name in ("cond_or_uncond", "uuids"):
        if name in more:
            more[name] = [*more[name], *(more[name][number // chunk] for number in numbers[::chunk])]
    if "cond_mark" in more:
        mark: Tensor = more["cond_mark"]
        more["cond_mark"] = torch.cat([mark, mark[list(numbers)]])
    for name in ("cond_indices", "uncond_indices"):
        if name in more:
            behind = [rows + place for place, number in enumerate(numbers) if number in more[name]]
            more[name] = [*more[name], *behind]
    return more


def extended_options(options: Options, rows: int, more: int, chunk: int) -> dict[str, Any]:
    """A copy of a call's options that describes ``more`` of its ``rows``, the last ones, as unconditional.

    Args:
        chunk: rows for each entry of ``cond_or_uncond``; ``more`` is a multiple of it.
    """
    wider, entries = dict(options), more // chunk
    wider["cond_or_uncond"] = [*options["cond_or_uncond"], *[1] * entries]
    if "uuids" in wider:
        wider["uuids"] = [*wider["uuids"], *wider["uuids"][-1:] * entries]
    if "cond_mark" in wider:
        mark: Tensor = wider["cond_mark"]
        wider["cond_mark"] = torch.cat([mark, mark.new_ones(more)])
    if "uncond_indices" in wider:
        wider["uncond_indices"] = [*wider["uncond_indices"], *range(rows - more, rows)]
    return wider
