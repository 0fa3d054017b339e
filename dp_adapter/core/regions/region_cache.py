"""Where the identities of a generation act in its calls: computed once for every grid and layout of rows.

Shapes: S pictures, R rows, N positions, C hidden channels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dp_adapter.core.injection import Injection
from dp_adapter.core.regions import region_masks
from dp_adapter.core.regions.region_masks import FlatRegion, RowRegion, add_gates
from dp_adapter.core.types import Level, Row, RowKind, Site, Step, TileBox
from dp_adapter.errors import HostError

_NO_POWERS: Mapping[Level, float] = {"down": 1.0, "middle": 1.0, "up": 1.0}


@dataclass(frozen=True)
class _RowMasks:
    """The masks as the rows of a call show them.

    Attributes:
        tiles: the distinct ones, each with its sample; None where rows show whole pictures.
        rows: the call's rows, each with the number of its mask as sample.
        masks: per identity [S, H, W], or [V, h, w] by tile; None for the whole picture.
        freed: likewise, what each identity leaves free; None for nothing.
        anywhere: whether any identity has a region there; frees: whether anything is left free there.
    """

    tiles: tuple[tuple[int, TileBox], ...] | None
    rows: tuple[Row, ...]
    masks: list[Tensor | None]
    freed: list[Tensor | None]
    anywhere: bool
    frees: bool


class RegionCache:
    """Gates and regions of rows, computed once per grid, level and row layout, and shared by the sites.

    They are kept until a track moves.
    """

    def __init__(self, injection: Injection) -> None:
        self._injection = injection
        self._versions: tuple[int, ...] = ()
        self._masks: dict[object, _RowMasks] = {}
        self._gains: dict[object, list[Tensor | None]] = {}
        self._row_regions: dict[object, list[list[RowRegion]]] = {}
        self._flat: dict[object, FlatRegion | None] = {}
        self._freed: dict[object, Tensor | None] = {}
        self._frees = False

    def enter(self, step: Step) -> bool:
        """To be called when the UNet is; returns whether its rows show any part of a region.

        Raises:
            HostError: a row belongs to a picture that an identity's mask [S, H, W] does not have.
        """
        regions_now = [identity.region for identity in self._injection.identities]
        freed_now = (
            [identity.free_region for identity in self._injection.identities] if self._injection.text.free else []
        )
        versions = tuple(one.track.version for one in self._injection.identities if one.track is not None)
        if versions != self._versions:
            self._versions = versions
            for kept in (self._masks, self._gains, self._row_regions, self._flat, self._freed):
                kept.clear()
        pictures = 1 + max(row.sample for row in step.rows)
        for mask in (*regions_now, *freed_now):
            if mask is not None and 1 < len(mask) < pictures:
                raise HostError(
                    f"The UNet was called for {pictures} pictures, but a mask is for {len(mask)}",
                    "Give one mask for all pictures, or one for each.",
                )
        here = self._row_masks(step)
        self._frees = here.frees
        return here.anywhere

    def gains(self, step: Step, halvings: int, level: Level, trained: bool = False) -> list[Tensor | None]:
        """Per identity G [S, N] before FFB; a trained gate starts from the mask itself, without powers."""
        here = self._row_masks(step)
        key = (here.tiles, step.latent, halvings, level, trained)
        if key not in self._gains:
            powers = _NO_POWERS if trained else self._injection.powers
            if self._injection.by_words:  # which divides the positions itself
                each = [region_masks.gains([mask], step.latent, halvings, level, powers) for mask in here.masks]
                self._gains[key] = [gain for (gain,) in each]
            else:
                self._gains[key] = region_masks.gains(here.masks, step.latent, halvings, level, powers)
        return self._gains[key]

    @property
    def strict(self) -> bool:
        """Whether the picture outside the regions is that of the twins."""
        return self._injection.text.strict or self.guidance is not None

    @property
    def guidance(self) -> float | None:
        """What the identities change in a prediction counts by this factor; None: they act in all rows."""
        return self._injection.guidance

    @property
    def twinned(self) -> bool:
        """Whether rows need their text-only twins now."""
        return self.strict or self._frees

    def own_share(self, step: Step, halvings: int, level: Level) -> Tensor | None:
        """How far each row keeps its own self-attention instead of its twin's, [R, N]; None for 1 everywhere."""
        inside = self.total(step, halvings, level) if self.strict else None
        freed = self._free_share(step, halvings) if self._frees else None
        if freed is None:
            return inside
        return 1 - freed if inside is None else inside * (1 - freed)

    def _free_share(self, step: Step, halvings: int) -> Tensor | None:
        """The free parts of all identities together for each row, [R, N]."""
        key = (*_layout(step), halvings)
        if key not in self._freed:
            here = self._row_masks(step)
            masks = [mask for mask in here.freed if mask is not None]
            shares = [region_masks.on_grid(mask, step.latent, halvings).flatten(1) for mask in masks]
            share = add_gates(shares).clamp(max=1.0) if shares else None
            self._freed[key] = None if share is None else _by_row(share, here.rows)
        return self._freed[key]

    def total(self, step: Step, halvings: int, level: Level) -> Tensor | None:
        """The gates of all identities together for each row, [R, N]; None where that is 1 everywhere."""
        gains = self.gains(step, halvings, level)
        present = [gain for gain in gains if gain is not None]
        if len(present) < len(gains) or not present:
            return None
        # Shares by words depend on the site; all of them together are what the regions leave.
        joined = functools.reduce(torch.maximum, present) if self._injection.by_words else add_gates(present)
        return _by_row(joined, self._row_masks(step).rows)

    def row_regions(self, site: Site, step: Step, like: Tensor, trained: bool = False) -> list[list[RowRegion]]:
        """Per identity, where it acts in each row."""
        key = (*_layout(step), site.halvings, site.level, trained, like.dtype, like.device)
        if key not in self._row_regions:
            gains = self.gains(step, site.halvings, site.level, trained)
            self._row_regions[key] = [region_masks.locate(self._row_masks(step).rows, gain, like) for gain in gains]
        return self._row_regions[key]

    def flat(self, site: Site, step: Step, number: int, kind: RowKind, like: Tensor) -> FlatRegion | None:
        """Where identity ``number`` acts in all rows of one kind, or None; ``like`` is [R, N, C]."""
        key = (number, kind, *_layout(step), site.halvings, site.level, like.dtype, like.device)
        if key not in self._flat:
            where = [p for p in self.row_regions(site, step, like)[number] if p.kind == kind]
            self._flat[key] = region_masks.join_rows(where, like.shape[1], like.device) if where else None
        return self._flat[key]

    def _row_masks(self, step: Step) -> _RowMasks:
        key = (step.rows, step.tiles)
        if key not in self._masks:
            masks = [identity.region for identity in self._injection.identities]
            freed = [
                identity.free_region if self._injection.text.free else None for identity in self._injection.identities
            ]
            tiles, rows = None, step.rows
            if step.tiles is not None:
                shared = all(mask is None or len(mask) == 1 for mask in (*masks, *freed))
                of_rows = [(0 if shared else row.sample, box) for row, box in zip(step.rows, step.tiles, strict=True)]
                tiles = tuple(dict.fromkeys(of_rows))
                rows = tuple(Row(row.kind, tiles.index(tile)) for row, tile in zip(rows, of_rows, strict=True))
                masks, freed = (
                    [mask if mask is None else region_masks.cut_tiles(mask, tiles) for mask in several]
                    for several in (masks, freed)
                )
            anywhere = any(mask is None or bool((mask > 0).any()) for mask in masks)
            frees = any(mask is not None and bool((mask > 0).any()) for mask in freed)
            self._masks[key] = _RowMasks(tiles, rows, masks, freed, anywhere, frees)
        return self._masks[key]


def _by_row(share: Tensor, rows: Sequence[Row]) -> Tensor:
    """[S, N], S = 1 or one per sample, -> [R, N]."""
    return share[[row.sample if len(share) > 1 else 0 for row in rows]]


def _layout(step: Step) -> tuple[object, ...]:
    """What of a call the regions of its rows depend on."""
    return step.latent, step.rows, step.tiles
