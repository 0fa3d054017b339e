"""The attention of a prompt's words while a picture forms, seen by torch hooks where a UNet computes q and k.

An attachment enters every call's ``Step`` here, so rows, pictures and noise level are told and not read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.core.regions.attention_maps import word_share
from dp_adapter.core.text.text_side import Positions, find_in_context
from dp_adapter.core.types import Grid, Site, Step
from dp_adapter.hosts.attach.host_unet import HostUNet
from dp_adapter.hosts.attach.parts.part import Part

KEEP = 0.7  # of the map so far, when a further noise level is seen
_MOST = 8  # sites that are looked at

Words = tuple[int, int, Positions]  # of a row: its place in the batch, its picture, and where they stand


@dataclass
class _Call:
    """One call of the UNet: its conditional rows that have words and are new at this noise level.

    Attributes:
        count: rows of the whole call.
        seen: sites that were looked at.
    """

    rows: tuple[Words, ...]
    count: int
    latent: Grid
    seen: set[int] = field(default_factory=set[int])


class WordMaps:
    """Maps of some words' attention, one per picture, for one pass of one generation.

    Every noise level counts once, with the first row of each picture and prompt: a level is one step of the sampler,
    however many calls it makes there. Samplers that look between their steps give two levels per step.

    Args:
        tokens: ``tokens[picture][part]``, positions of the words in the picture's prompt, of which AND joins several;
            in the text's own 77 n tokens with start and end. Empty where the prompt has none of the words.
        latent: size of the picture's latents, so that calls with tiles of it are left out.

    Attributes:
        updates: how many noise levels are in the maps.
    """

    def __init__(self, tokens: Sequence[Sequence[Sequence[int]]], latent: Grid | None = None) -> None:
        self._tokens = [[tuple(part) for part in parts] for parts in tokens]
        self._latent = latent
        self._stopped = not any(part for parts in self._tokens for part in parts)
        self._call: _Call | None = None
        self._queries: dict[int, Tensor] = {}
        self._progress = -1.0
        self._looked: set[tuple[int, int]] = set()  # pictures and parts at this noise level
        self._shares: dict[Grid, Tensor] = {}  # of this noise level, summed over sites and parts: [S, N]
        self._kept: Tensor | None = None  # [S, h, w], of the levels before
        self._levels = 0
        self._where: dict[object, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def updates(self) -> int:
        return self._levels + bool(self._shares)

    def latest(self) -> Tensor | None:
        """The maps so far, [S, h, w] float32 on the CPU: 1 where a picture's words have their largest share; all zero
        for a picture without the words. None before the first call of the UNet.
        """
        maps = self._with_level()
        return None if maps is None else maps.cpu()

    def stop(self) -> None:
        """Nothing is computed from here on; the maps stay as they are."""
        self._stopped = True
        self.enter(None)

    def listen(self, stack: ExitStack, sites: Sequence[Site], attention: Callable[[Site], nn.Module]) -> None:
        """Puts the hooks in until ``stack`` closes.

        Args:
            attention: a site's ``attn2``, which calls its ``to_q`` and then its ``to_k``.
        """
        for site in () if self._stopped else looked_at(sites):
            attn2 = attention(site)
            stack.callback(attn2.get_submodule("to_q").register_forward_hook(self._query(site)).remove)
            stack.callback(attn2.get_submodule("to_k").register_forward_hook(self._key(site)).remove)

    def enter(self, step: Step | None) -> None:
        """A call of the UNet begins, with the rows that the sites will have; None is one that is left alone."""
        self._call = None
        self._queries.clear()
        if step is None or self._stopped or self._latent not in (None, step.latent):
            return
        if step.progress != self._progress:
            self._kept, self._levels = self._with_level(), self.updates
            self._shares, self._progress = {}, step.progress
            self._looked.clear()
        rows: list[Words] = []
        for number, row in enumerate(step.rows):
            if row.kind != "cond" or row.part is None or (row.sample, row.part) in self._looked:
                continue
            if positions := self._positions(row.sample, row.part):
                self._looked.add((row.sample, row.part))
                rows.append((number, row.sample, positions))
        if rows:
            self._call = _Call(tuple(rows), len(step.rows), step.latent)

    def _positions(self, sample: int, part: int) -> Positions:
        parts = self._tokens[sample] if sample < len(self._tokens) else []
        return parts[part] if part < len(parts) else ()

    def _query(self, site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if self._call is not None:
                self._queries[site.index] = output

        return hook

    def _key(self, site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            q = self._queries.pop(site.index, None)
            if self._call is not None and q is not None and site.index not in self._call.seen:
                self._look(self._call, site, q, output, args[0])

        return hook

    @torch.no_grad()
    def _look(self, call: _Call, site: Site, q: Tensor, k: Tensor, context: Tensor) -> None:
        """Adds one site's shares. Left alone where another extension changed rows or grid inside the attention.

        Args:
            q: [R, N, I]; k: [R, L, I]; context: [R, L, D].
        """
        grid = call.latent.halved(site.halvings)
        if q.shape[:-1] != (call.count, len(grid)) or k.shape[:-1] != context.shape[:-1] or len(k) != call.count:
            return
        call.seen.add(site.index)
        key = (call.rows, context.shape[1], q.device)
        if key not in self._where:  # once per generation: what goes to a GPU waits for it
            self._where[key] = _where(call.rows, context)
        rows, samples, words = self._where[key]
        share = word_share(q[rows], k[rows], words, site.heads)
        before = self._shares.get(grid)
        if before is None:
            before = share.new_zeros(len(self._tokens), len(grid))
        self._shares[grid] = before.index_add(0, samples, share)

    def _with_level(self) -> Tensor | None:
        """The maps with what was seen at this noise level, [S, h, w]."""
        if not self._shares:
            return self._kept
        finest = max(self._shares, key=len)
        size = (finest.height, finest.width)
        maps = [share.reshape(1, -1, grid.height, grid.width) for grid, share in self._shares.items()]
        total = torch.cat([F.interpolate(one, size, mode="bilinear") for one in maps]).sum(0)  # [S, h, w]
        peak = total.amax((1, 2), keepdim=True)
        level = total / peak.clamp(min=torch.finfo(total.dtype).tiny)
        kept = self._kept
        if kept is None or kept.shape != level.shape:
            kept = torch.zeros_like(level)
        old = kept.amax((1, 2), keepdim=True) > 0
        mixed = torch.where(old, KEEP * kept + (1 - KEEP) * level, level)
        return torch.where(peak > 0, mixed, kept)


class WordMapsPart(Part):
    """Word maps that see the calls of an attachment."""

    def __init__(self, host: HostUNet, maps: WordMaps) -> None:
        self._host, self._maps = host, maps

    def register(self, stack: ExitStack) -> None:
        self._maps.listen(stack, self._host.sites, self._host.attn2)

    def enter(self, step: Step | None) -> None:
        self._maps.enter(step)


def _where(rows: Sequence[Words], context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places in the batch [r], pictures [r], and the words' tokens [r, L], on the device of the contexts [R, L, D]."""
    words = torch.zeros(len(rows), context.shape[1])
    for number, (row, _, positions) in enumerate(rows):
        words[number, find_in_context(positions, context[row])] = 1
    places, samples = (torch.tensor([row[i] for row in rows]) for i in (0, 1))
    return places.to(context.device), samples.to(context.device), words.to(context.device)


def looked_at(sites: Sequence[Site]) -> list[Site]:
    """The sites whose attention is taken: in the middle and on the way up, with at most 32 x 32 cells in a picture of
    the model's own size. Of SDXL's many evenly chosen ones.
    """
    least = 1 if len(sites) == 16 else 2  # SD1.5 begins with 64 x 64 latents, SDXL with 128 x 128
    found = [site for site in sites if site.level != "down" and site.halvings >= least]
    return found[:: -(-len(found) // _MOST)]
