"""Which rows a call of the UNet has in AUTOMATIC1111's sampler, where one denoising step may be several calls.

A step has all conditional rows, picture by picture (several of one picture with AND), then the unconditional ones; an
instruct-pix2pix model has these twice (sd_samplers_cfg_denoiser.py:202-209 in v1.10.1). The calls take them in that
order, in any pieces, and may leave the unconditional ones out (:229-271). Extensions call once more, or with tiles:
then each tile has the step's rows in their order, however the calls cut tiles and rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from dp_adapter.core.types import Grid, Row, TileBox
from dp_adapter.errors import HostError
from dp_adapter.hosts.rows import tiles
from dp_adapter.hosts.rows.tiles import TilePosition

Text = Tensor | Mapping[str, Tensor]  # SDXL's has its tokens under "crossattn"
CondsList = Sequence[Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class KnownRows:
    """The rows of one call.

    Attributes:
        whole: False where the latents are of another size than the step's (tiles).
        tiles: where the tiles lie, if that was asked and they were found.
    """

    rows: tuple[Row, ...]
    whole: bool
    tiles: tuple[TileBox, ...] | None = None


@dataclass(frozen=True)
class _Step:
    rows: tuple[Row, ...]
    texts: tuple[Tensor, ...]  # per row [L, D]
    pictures: Tensor  # [B, c, H, W], what tiles are cut from

    @property
    def latent(self) -> Grid:
        return Grid(*self.pictures.shape[-2:])


class CfgRows:
    """Told once per denoising step what its rows are; tells for every call of the UNet which of them it has.

    One object serves one pass of one generation. Before the first step nothing is known, and calls are left alone.
    """

    def __init__(self) -> None:
        self._announced: tuple[CondsList, Tensor, Text, Text] | None = None
        self._step: _Step | None = None
        self._next = 0
        self._taken: dict[TilePosition, int] = {}  # rows that each tile had already

    def announce(self, conds_list: CondsList, latents: Tensor, text_cond: Text, text_uncond: Text) -> None:
        """To be called from ``on_cfg_denoiser``, once per call of it. Raises nothing, since that hook hides exceptions.

        Args:
            conds_list: per picture (row of ``text_cond``, weight), as ``reconstruct_multicond_batch`` gives it.
            latents: [R, c, h, w], all rows of the step.
            text_cond, text_uncond: text of the conditional and of the unconditional rows, [n, L, D] each.
        """
        # SDXL's mapping is padded in place after the hook: take the tensors out of it now.
        self._announced = (conds_list, latents, _tokens(text_cond), _tokens(text_uncond))
        self._step, self._next = None, 0
        self._taken.clear()

    def of(self, latents: Tensor, context: Tensor, locate: bool = False) -> KnownRows | None:
        """The rows of the UNet's next call; None outside of a denoising step.

        The order decides, unless the text says that it cannot be right.

        Args:
            latents: [n, c, h, w]; context: [n, L, D], as the UNet gets them.
            locate: whether it matters where tiles lie.

        Raises:
            HostError: the announcement was inconsistent, or neither order nor text tells a row.
        """
        if self._announced is None:
            return None
        if self._step is None:
            self._step = _step(*self._announced)
        step, count = self._step, len(latents)
        if Grid(*latents.shape[-2:]) != step.latent:
            return self._of_tiles(step, latents, context, locate)
        in_order = range(self._next, self._next + count)
        if in_order.stop <= len(step.rows) and _in_order(step, in_order, context):
            self._next = in_order.stop
            return KnownRows(step.rows[in_order.start : in_order.stop], True)
        return KnownRows(tuple(step.rows[i] for i in _by_text(step, context)), True)

    def _of_tiles(self, step: _Step, latents: Tensor, context: Tensor, locate: bool) -> KnownRows:
        """A text of a region's own says nothing; the order does, once it is known which tile it is in."""
        foreign = any(not _rows_with(step, text) for text in context)
        places = tiles.find(latents, step.pictures) if locate or foreign else None
        if places is None:
            return KnownRows(tuple(step.rows[i] for i in _by_text(step, context)), False)
        rows = tuple(self._of_tile(step, place, text) for place, text in zip(places, context, strict=True))
        size = Grid(*latents.shape[-2:])
        return KnownRows(rows, False, tuple(place.window(size, step.latent) for place in places))

    def _of_tile(self, step: _Step, place: TilePosition, text: Tensor) -> Row:
        own = [i for i, row in enumerate(step.rows) if row.sample == place.picture]
        turn = self._taken.get(place, 0) % len(own)  # a region may cover exactly what a tile did
        known = _rows_with(step, text)
        like = [own.index(i) for i in known if i in own]
        if like and turn not in like:
            turn = like[0]
        self._taken[place] = turn + 1
        row = step.rows[own[turn]]
        return row if known or row.kind != "cond" else replace(row, part=None)


def _tokens(text: Text) -> Tensor:
    return text if isinstance(text, Tensor) else text["crossattn"]


def _step(conds_list: CondsList, latents: Tensor, text_cond: Text, text_uncond: Text) -> _Step:
    cond, uncond = _tokens(text_cond), _tokens(text_uncond)
    picture = {
        index: (number, part) for number, conds in enumerate(conds_list) for part, (index, _) in enumerate(conds)
    }
    rest = len(latents) - len(cond)
    if (
        sorted(picture) != list(range(len(cond)))
        or len(uncond) != len(conds_list)
        or rest % len(conds_list)
        or not rest
    ):
        raise HostError(
            f"The sampler has {len(latents)} rows, {len(cond)} of them conditional, {len(uncond)} texts without "
            f"condition and {len(conds_list)} pictures; DP-Adapter cannot tell which row is which",
            "Another extension changed the sampler's batch: switch it off.",
        )
    pictures = latents[-len(uncond) :]
    samples = _pictures_of(latents[: len(cond)], pictures, {row: sample for row, (sample, _) in picture.items()})
    told = [picture[row] for row in range(len(cond))]  # a row of another picture may be of another part, too
    rows = [
        Row("cond", sample, part if sample == number else None)
        for sample, (number, part) in zip(samples, told, strict=True)
    ]
    rows += [Row("uncond", index % len(uncond)) for index in range(rest)]
    texts = [*cond, *(uncond[index % len(uncond)] for index in range(rest))]
    return _Step(tuple(rows), tuple(texts), pictures)


def _pictures_of(latents: Tensor, pictures: Tensor, told: Mapping[int, int]) -> list[int]:
    """The picture of each conditional row. Regional Prompter's latent mode changes their order, which shows in them.

    Args:
        latents: [C, c, h, w]; pictures: [B, c, h, w]; told: from a row to its picture, as the sampler made them.
    """
    if len(pictures) in (1, len(latents)):
        return [told[row] for row in range(len(latents))]
    equal = (latents[:, None] == pictures).flatten(2).all(2)  # [C, B]
    alike = cast("list[list[bool]]", equal.tolist())  # pyright: ignore[reportUnknownMemberType]
    return [told[row] if same[told[row]] or True not in same else same.index(True) for row, same in enumerate(alike)]


def _same(text: Tensor, context: Tensor) -> bool:
    """Whether two texts [L, D] begin alike: the shorter one was padded, the longer one cut."""
    common = min(len(text), len(context))
    return torch.equal(text[:common].to(context), context[:common])


def _rows_with(step: _Step, text: Tensor) -> list[int]:
    """The step's rows that have a text [L, D]."""
    return [i for i, known in enumerate(step.texts) if _same(known, text)]


def _in_order(step: _Step, indices: range, context: Tensor) -> bool:
    """Whether no row has a text that is another row's; a text that is nobody's was changed by another extension."""
    return all(
        _same(step.texts[index], row) or not _rows_with(step, row) for index, row in zip(indices, context, strict=True)
    )


def _by_text(step: _Step, context: Tensor) -> list[int]:
    """The step's row of every row of a call. Where several have its text, the next one in the step's order."""
    found: list[int] = []
    total = len(step.rows)
    for row in context:
        last = found[-1] if found else -1
        candidates = ((last + offset) % total for offset in range(1, total + 1))
        index = next((index for index in candidates if _same(step.texts[index], row)), None)
        if index is None:
            raise HostError(
                "The UNet was called with a text that is neither the prompt's nor the negative prompt's",
                "An extension gives parts of the picture a text of their own (regions of Tiled Diffusion, for "
                "instance): switch that off.",
            )
        found.append(index)
    return found
