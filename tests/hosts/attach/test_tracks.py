"""Regions that move between calls of the UNet, on every host: each call is as if its mask had always been there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.regions.region_masks import on_grid
from dp_adapter.core.regions.track import Track
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.types import Grid, Row
from tests import tiny
from tests.hosts.attach.test_conformance import DISTINCT, PAIR, QUARTER, SOME, VARIANTS, largest, patched
from tests.hosts.protocol import Host, unpatched

NOWHERE = torch.zeros_like(SOME)
DEEP = ["folded", "strict trained"]


def standing(host: Host, name: str, mask: Tensor | None) -> Tensor:
    """The call with a mask that does not move."""
    variant = VARIANTS[name]
    return patched(host, variant.injection(host.base, variant.identity(host.base, mask=mask)))


@pytest.mark.parametrize("name", [*DISTINCT, "strict"])
def test_every_call_has_the_mask_of_its_moment(small: Host, name: str) -> None:
    variant, given = VARIANTS[name], tiny.inputs(small.base, PAIR)
    masks = (SOME, QUARTER, None, SOME)
    expected = [standing(small, name, mask) for mask in masks]
    plain, track = unpatched(small, PAIR), Track(NOWHERE)
    with small.attached(variant.injection(small.base, variant.identity(small.base, track=track)), PAIR):
        assert torch.equal(small(given), plain), "nowhere is bit-equal"
        for mask, still in zip(masks, expected, strict=True):
            track.move(mask)
            moved = small(given)
            assert largest(moved - still) < 1e-5 and largest(moved - plain) > 1e-2
        track.move(NOWHERE)
        assert torch.equal(small(given), plain), "and nowhere again"


@pytest.mark.parametrize("name", DEEP)
def test_sdxl_has_the_mask_of_its_moment(large: Host, name: str) -> None:
    variant, given = VARIANTS[name], tiny.inputs(large.base, PAIR)
    expected = standing(large, name, SOME)
    plain, track = unpatched(large, PAIR), Track(NOWHERE)
    with large.attached(variant.injection(large.base, variant.identity(large.base, track=track)), PAIR):
        assert torch.equal(large(given), plain)
        track.move(SOME)
        assert largest(large(given) - expected) < 1e-4


def test_outside_the_mask_of_the_moment_there_is_no_term(small: Host) -> None:
    """At the first site, whose input is the base model's, the term's support is exactly the cells of the mask."""
    alone = Schedule(sites={index: float(index == 0) for index in range(16)})
    variant, given = VARIANTS["folded"], tiny.inputs(small.base, PAIR)
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
        outputs.append(output.clone())

    track = Track(NOWHERE)
    injection = variant.injection(small.base, variant.identity(small.base, track=track), schedule=alone)
    with small.attached(injection, PAIR):
        handle = small.block(0).register_forward_hook(keep)
        for mask in (NOWHERE, SOME, QUARTER):
            track.move(mask)
            small(given)
        handle.remove()
    for mask, out in zip((SOME, QUARTER), outputs[1:], strict=True):
        moved = (out - outputs[0]).flatten(1).abs().sum(0) if out.ndim == 2 else (out - outputs[0]).abs().sum((0, 2))
        inside = on_grid(mask, Grid(16, 16), 0).flatten() > 0
        assert torch.equal(moved > 0, inside)


def test_pictures_of_a_batch_move_apart(small: Host) -> None:
    rows = [Row(kind, sample) for kind in ("cond", "uncond") for sample in (0, 1)]
    variant, given = VARIANTS["folded"], tiny.inputs(small.base, rows)
    plain, track = unpatched(small, tuple(rows)), Track(NOWHERE)
    with small.attached(variant.injection(small.base, variant.identity(small.base, track=track)), rows):
        track.move(torch.cat([SOME, NOWHERE]))
        out = small(given)
        assert torch.equal(out[[1, 3]], plain[[1, 3]]) and largest(out[[0, 2]] - plain[[0, 2]]) > 1e-2
