"""Sampling in tiles by other extensions: a region acts in each tile as in the part of the picture that it shows.

The call patterns are read from Tiled Diffusion (pkuliyi2015/multidiffusion-upscaler-for-automatic1111 at 22798f6) and
from the MultiDiffusion built into Forge (at dfdcbab6); no code of theirs is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.types import Grid, Row, TileBox
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import forge
from dp_adapter.hosts.attach import ldm as ldm_host
from dp_adapter.hosts.attach.forge_options import sampler_rows
from dp_adapter.hosts.rows import tiles
from dp_adapter.hosts.rows.a1111_rows import CfgRows
from dp_adapter.hosts.rows.tiles import TilePosition
from tests import tiny
from tests.hosts.forge_host import Forge
from tests.hosts.protocol import Host, host_of

WHOLE = (24, 40)
TILE = 16
C_IN = 0.1  # what the sampler multiplies latents with before the UNet gets them
COND, UNCOND = Row("cond"), Row("uncond")
FACE = tiny.box(0.2, 0.25, 0.55, 0.75, WHOLE)  # across tiles, and not on their edges
CORNERS = [(0, 0), (0, 13), (0, 24), (8, 0), (8, 13), (8, 24)]  # (top, left), as uneven as split_bboxes makes them


def cut(x: Tensor, corner: tuple[int, int], side: int = TILE, scale: int = 1) -> Tensor:
    top, left = (scale * edge for edge in corner)
    return x[..., top : top + scale * side, left : left + scale * side]


def someone(**changes: Any) -> Identity:
    return replace(Identity(tiny.adapter("sd15"), tiny.tokens(), mask=FACE), **changes)


def trained() -> Injection:
    return Injection((someone(adapter=tiny.adapter("sd15", text=True, blending=True)),), text=TextPathway(strict=True))


WAYS: dict[str, Callable[[], Injection]] = {
    "folded": lambda: Injection((someone(),)),
    "half": lambda: Injection((someone(),), form="half"),
    "plain": lambda: Injection((someone(),), form="plain"),
    "strict": lambda: Injection((someone(),), text=TextPathway(strict=True)),
    "strict trained": trained,
    "gated": lambda: Injection((someone(adapter=tiny.gated_adapter(), mode="gated"),)),
    "two": lambda: Injection((someone(), someone(tokens=tiny.tokens(seed=9), mask=None, weight=0.5))),
}


def cropped(injection: Injection, corner: tuple[int, int]) -> Injection:
    """The same for the one tile as if it were a picture; its mask has 8 pixels for each cell."""
    masks = [one.mask if one.mask is None else cut(one.mask, corner, scale=8) for one in injection.identities]
    return replace(
        injection,
        identities=tuple(replace(one, mask=mask) for one, mask in zip(injection.identities, masks, strict=True)),
    )


# Finding.


def pictures(count: int = 1, size: tuple[int, int] = WHOLE, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.068, 14.6])
def test_every_offset_is_found_exactly(kind: torch.dtype, scale: float) -> None:
    whole = pictures(2)
    for side in (4, 16, 24):
        places = [
            TilePosition(picture, top, left)
            for picture in range(2)
            for top in range(0, WHOLE[0] - side + 1, 5)
            for left in range(0, WHOLE[1] - side + 1, 3)
        ]
        given = torch.stack([cut(whole[p.picture], (p.top, p.left), side) for p in places])
        assert tiles.find((given * scale).to(kind), whole) == places


def test_an_almost_finished_picture_is_found_too() -> None:
    """At the last step there is hardly any noise, and what is in a picture may be flat."""
    smooth = F.interpolate(pictures(size=(3, 5)), WHOLE, mode="bicubic")
    smooth[..., 20:] = smooth[..., 20:21]
    whole = smooth + 0.03 * pictures(seed=1)
    given = torch.cat([cut(whole, corner) for corner in CORNERS])
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        found = tiles.find((0.99 * given).to(kind), whole)
        assert found == [TilePosition(0, *corner) for corner in CORNERS]


def test_inpainting_channels_behind_the_latents_do_not_matter() -> None:
    given = torch.cat([cut(pictures(), (3, 5)), torch.ones(1, 5, TILE, TILE)], 1)
    assert tiles.find(given, pictures()) == [TilePosition(0, 3, 5)]


def test_what_is_not_a_cut_is_not_found() -> None:
    whole = pictures()
    tile = cut(whole, (3, 5))
    blurred = F.avg_pool2d(F.pad(whole, (1, 1, 1, 1)), 3, 1)
    for changed in (
        tile + 0.1 * pictures(size=(TILE, TILE), seed=2),  # noise of its own
        F.interpolate(cut(whole, (3, 5), 8), (TILE, TILE)),
        whole[..., ::2, ::2],  # DemoFusion's dilated sampling is not a window
        cut(blurred, (3, 5)),
        -tile,
        torch.zeros_like(tile),
        pictures(size=(32, 48)),  # larger than the picture
    ):
        assert tiles.find(changed, whole) is None
    assert tiles.find(torch.cat([tile, tile + 0.1]), whole) is None, "one of several is enough"


# A region in tiles, in both families of hosts.


@dataclass(frozen=True)
class Tiled:
    """A host at one step of a picture, whose UNet is called with cuts of it.

    Attributes:
        rows: of the step, in the host's order.
    """

    name: str
    rows: tuple[Row, ...]
    given: tiny.Inputs  # of the whole picture

    @property
    def host(self) -> Host:
        return host_of(self.name, "sd15")

    def tiles(self, corners: Sequence[tuple[int, int]]) -> tiny.Inputs:
        """All rows of the first tile, then all of the second: ``torch.cat([x_in[bbox.slicer] for bbox in bboxes])``."""
        latents = torch.cat([C_IN * cut(self.given.latents, corner) for corner in corners])
        return tiny.Inputs(latents, self.given.context.repeat(len(corners), 1, 1))

    def outputs(self, injection: Injection, calls: Sequence[tiny.Inputs]) -> list[Tensor]:
        """What calls of one step give."""
        host = self.host
        if isinstance(host, Forge):
            batch = 1 + max(row.sample for row in self.rows)
            marks = [int(row.kind == "uncond") for row in self.rows[::batch]]
            with forge.attach(host.unet, injection, sampler_rows(batch), Grid(*WHOLE)) as attached:
                attached.announce(self.given.latents[:batch])
                return [_forge_call(host, call, marks) for call in calls]
        told = CfgRows()
        conds = [i for i, row in enumerate(self.rows) if row.kind == "cond"]
        conds_list = [[(i, 1.0) for i in conds if self.rows[i].sample == s] for s in range(len(self.rows) - len(conds))]
        told.announce(conds_list, self.given.latents, self.given.context[conds], self.given.context[len(conds) :])
        with ldm_host.attach(host.model, injection, told):
            return [host(call) for call in calls]

    def alone(self, injection: Injection, corner: tuple[int, int], rows: Sequence[int] | None = None) -> Tensor:
        """One tile as if it were a picture of its own."""
        picked = range(len(self.rows)) if rows is None else rows
        with self.host.attached(cropped(injection, corner), [self.rows[i] for i in picked]):
            return self.host(self.tiles([corner]).rows(list(picked)))


def _forge_call(host: Forge, call: tiny.Inputs, marks: Sequence[int]) -> Tensor:
    """What MultiDiffusion hands to ``apply_model``: its tiles' rows, with marks for one tile's rows only."""
    options = {**host.unet.model_options["transformer_options"], "cond_or_uncond": list(marks)}
    timesteps = torch.full((len(call.latents),), call.timestep)
    return host.model(call.latents, timesteps, context=call.context, transformer_options=options)


ORDERS: dict[str, Sequence[Row]] = {"ldm": (COND, UNCOND), "forge": (UNCOND, COND)}


@lru_cache
def tiled(name: str, batch: int = 1) -> Tiled:
    rows = tuple(replace(row, sample=sample) for row in ORDERS[name] for sample in range(batch))
    return Tiled(name, rows, tiny.inputs("sd15", rows, WHOLE))


@pytest.fixture(params=list(ORDERS))
def step(request: pytest.FixtureRequest) -> Tiled:
    return tiled(request.param)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_a_tile_is_what_the_picture_is_there(step: Tiled, way: str) -> None:
    injection = WAYS[way]()
    for corner, out in zip(CORNERS, step.outputs(injection, [step.tiles([corner]) for corner in CORNERS]), strict=True):
        torch.testing.assert_close(out, step.alone(injection, corner), atol=0, rtol=0)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_tiles_of_one_batch_have_each_its_own_window(step: Tiled, way: str) -> None:
    injection = WAYS[way]()
    (out,) = step.outputs(injection, [step.tiles(CORNERS)])
    alone = torch.cat([step.alone(injection, corner) for corner in CORNERS])
    torch.testing.assert_close(out, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_tiles_without_the_region_are_bit_equal_to_those_without_the_adapter(step: Tiled) -> None:
    injection = Injection((someone(mask=tiny.box(0, 0, 0.25, 1, WHOLE)),), text=TextPathway(strict=True))
    away = step.tiles([(0, 13), (8, 24)])
    (out,) = step.outputs(injection, [away])
    assert torch.equal(out, step.outputs(Injection(()), [away])[0])
    near = step.tiles([(0, 9)])
    assert not torch.equal(step.outputs(injection, [near])[0], step.outputs(Injection(()), [near])[0])


@torch.no_grad()
def test_overlapping_tiles_put_together_have_the_term_only_inside_the_region(step: Tiled) -> None:
    """As MultiDiffusion averages them, at one site's output: exactly 0 outside, what each tile has inside."""
    site, seen = 0, list[Tensor]()
    norm = step.host.block(site).get_submodule("norm3")

    def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].clone())

    handle = norm.register_forward_pre_hook(keep)
    for injection in (Injection(()), WAYS["folded"]()):
        step.outputs(injection, [step.tiles(CORNERS)])
    handle.remove()
    term = (seen[1] - seen[0]).unflatten(1, (TILE, TILE)).abs().amax((-1,)).unflatten(0, (len(CORNERS), -1)).amax(1)
    inside = F.avg_pool2d(FACE, 8)[0] > 0
    for corner, of_tile in zip(CORNERS, term, strict=True):
        assert torch.equal(of_tile > 0, cut(inside, corner))


@pytest.mark.parametrize("name", ORDERS)
@torch.no_grad()
def test_each_picture_of_a_batch_has_its_own_mask_in_its_tiles(name: str) -> None:
    step, masks = tiled(name, 2), torch.cat([FACE, FACE.flip(-1)])
    injection = Injection((someone(mask=masks),))
    (out,) = step.outputs(injection, [step.tiles(CORNERS[:3])])
    torch.testing.assert_close(out, torch.cat([step.alone(injection, c) for c in CORNERS[:3]]), atol=1e-5, rtol=0)


def test_masks_are_cut_where_cells_begin_whatever_their_size() -> None:
    """A mask of another size than 8 pixels for each cell is resized first: cells of tiles are those of the picture."""
    from dp_adapter.core.regions import region_masks

    mask = torch.rand(2, 37, 61, generator=torch.Generator().manual_seed(3))
    whole = region_masks.on_grid(mask, Grid(*WHOLE), 0)
    views = [(s, TileBox(top, left, Grid(TILE, TILE), Grid(*WHOLE))) for s in (0, 1) for top, left in CORNERS]
    seen = region_masks.cut_tiles(mask, views)
    for (sample, window), part in zip(views, seen, strict=True):
        assert torch.equal(part, cut(whole[sample], (window.top, window.left)))


# What Tiled Diffusion does in A1111.


def ldm_outputs(step: Tiled, injection: Injection, calls: Sequence[tuple[tuple[int, int], Sequence[Tensor]]]) -> Any:
    """Per call a tile and texts for the first rows of it."""
    inputs = [
        tiny.Inputs(C_IN * cut(step.given.latents, corner)[: len(t)], torch.stack(list(t))) for corner, t in calls
    ]
    return step.outputs(injection, inputs)


def same_as(step: Tiled, injection: Injection, corner: tuple[int, int], texts: Sequence[Tensor], row: Row) -> Tensor:
    latents = C_IN * cut(step.given.latents, corner)[: len(texts)]
    with step.host.attached(cropped(injection, corner), [row] * len(texts)):
        return step.host(tiny.Inputs(latents, torch.stack(list(texts))))


@torch.no_grad()
def test_prompts_of_regions_are_told_by_their_tile() -> None:
    """kdiff_custom_forward (abstractdiffusion.py:197-400): after the grid's tiles each region is called with a prompt
    and a negative prompt of its own, in the sampler's order: all rows at once, or those with the prompt first.
    """
    step, injection = tiled("ldm"), WAYS["folded"]()
    cond, uncond = step.given.context
    own, against = 0.5 * cond.flip(0), 0.5 * uncond.flip(0)
    corner = (5, 7)
    grid = ((0, 0), (cond, uncond))
    for texts in ((own, against), (own, uncond)):
        kinds = [
            torch.cat([same_as(step, injection, corner, [text], row)])
            for text, row in zip(texts, (COND, UNCOND), strict=True)
        ]
        joined = ldm_outputs(step, injection, [grid, (corner, texts)])[1]
        torch.testing.assert_close(joined, torch.cat(kinds), atol=1e-5, rtol=0)
        apart = ldm_outputs(step, injection, [grid, (corner, texts[:1]), (corner, texts[1:])])[1:]
        for out, expected in zip(apart, kinds, strict=True):
            torch.testing.assert_close(out, expected, atol=0, rtol=0)


@torch.no_grad()
def test_a_region_may_cover_exactly_a_tile_of_the_grid() -> None:
    step, injection = tiled("ldm"), WAYS["folded"]()
    cond, uncond = step.given.context
    own = 0.5 * cond.flip(0)
    out = ldm_outputs(step, injection, [((8, 13), (cond, uncond)), ((8, 13), (own, uncond))])[1]
    torch.testing.assert_close(out[:1], same_as(step, injection, (8, 13), [own], COND), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1:], same_as(step, injection, (8, 13), [uncond], UNCOND), atol=1e-5, rtol=0)


@torch.no_grad()
def test_tiles_of_split_calls_go_on_where_the_first_call_ended() -> None:
    """Prompts of different length: the sampler calls twice, each time for all tiles; here with one text for both."""
    step, injection = tiled("ldm"), WAYS["folded"]()
    text = step.given.context[0]
    same = replace(step, given=replace(step.given, context=torch.stack([text, text])))
    calls = [(corner, [text]) for _ in range(2) for corner in CORNERS[:3]]
    outs = ldm_outputs(same, injection, calls)
    for i, (corner, _) in enumerate(calls):
        expected = same_as(same, injection, corner, [text], COND if i < 3 else UNCOND)
        torch.testing.assert_close(outs[i], expected, atol=0, rtol=0)


@torch.no_grad()
def test_a_text_of_its_own_is_told_by_its_tile_without_a_region_too() -> None:
    step, injection = tiled("ldm"), Injection((someone(mask=None),))
    own = 0.5 * step.given.context.flip(1)
    (out,) = ldm_outputs(step, injection, [((5, 7), tuple(own))])
    expected = torch.cat([same_as(step, injection, (5, 7), [own[i]], row) for i, row in enumerate((COND, UNCOND))])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    noisy = tiny.Inputs(C_IN * cut(step.given.latents, (5, 7)) + 0.1, own)
    with pytest.raises(HostError, match="neither the prompt's nor the negative prompt's"):
        step.outputs(injection, [noisy])


@pytest.mark.parametrize("name", ORDERS)
@torch.no_grad()
def test_tiles_that_are_no_cuts_are_refused_where_a_region_is(name: str) -> None:
    step = tiled(name)
    tile = step.tiles([(5, 7)])
    noisy = tiny.Inputs(tile.latents + 0.1 * C_IN, tile.context)
    assert step.outputs(Injection((someone(mask=None),)), [noisy])
    with pytest.raises(HostError, match=r"where in it they lie cannot be found.*whole picture instead of a region"):
        step.outputs(WAYS["folded"](), [noisy])
