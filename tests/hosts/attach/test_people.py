"""Several persons in one picture on every host: each in its region, or sharing it by their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dp_adapter.core.injection import Form, Identity, Injection, TextPathway
from dp_adapter.core.regions import region_masks
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.types import Grid, Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.sites import Base, site_names
from tests import tiny
from tests.hosts.attach.test_conformance import (
    PAIR,
    POWERLESS,
    SOME,
    largest,
    patched,
    seen_at_sites,
    someone,
    touched_cells,
    wanting_adapter,
)
from tests.hosts.protocol import Host, unpatched
from tests.hosts.reference import shared_output

SIZE = (17, 23)  # halves unevenly
FIRST = 0  # the site that runs first, so that all others' work cannot have come into it yet


def boxes(*edges: tuple[float, float]) -> tuple[Tensor, ...]:
    """Upright boxes between fractions of the width."""
    return tuple(tiny.box(x0, 0.1, x1, 0.9, SIZE) for x0, x1 in edges)


PLACES: Mapping[str, Sequence[Tensor]] = {
    "two apart": boxes((0.0, 0.4), (0.6, 1.0)),
    "two side by side": boxes((0.0, 0.5), (0.5, 1.0)),
    "two that overlap": boxes((0.0, 0.7), (0.3, 1.0)),
    "three apart": boxes((0.0, 0.2), (0.4, 0.6), (0.8, 1.0)),
    "three that overlap": boxes((0.0, 0.6), (0.3, 0.8), (0.5, 1.0)),
}


def persons(base: Base, places: Sequence[Tensor]) -> tuple[Identity, ...]:
    return tuple(someone(base, seed=20 + number, mask=mask) for number, mask in enumerate(places))


@pytest.mark.parametrize("form", ["folded", "plain"])
@pytest.mark.parametrize("name", PLACES)
def test_each_persons_term_is_zero_outside_their_own_region(host: Host, name: str, form: Form) -> None:
    """Another face in one person's place changes the first site in that person's cells, all of them and no others."""
    if host.base == "sdxl" and name != "three that overlap":
        pytest.skip("what SD1.5 shows already, in much more time")
    places = PLACES[name]
    everybody = persons(host.base, places)
    given = tiny.inputs(host.base, PAIR, SIZE)
    halvings = site_names(host.base)[FIRST].halvings

    def first(*who: Identity) -> tuple[Tensor, Tensor]:
        only = Schedule(sites={i: float(i == FIRST) for i in range(70)})
        return seen_at_sites(host, Injection(who, schedule=only, form=form), PAIR, given)[FIRST]

    out, bare = first(*everybody)
    nobody = torch.ones(out.shape[1], dtype=torch.bool)
    for number, place in enumerate(places):
        changed = list(everybody)
        changed[number] = replace(everybody[number], tokens=tiny.tokens(seed=90 + number))
        other, _ = first(*changed)
        mine = touched_cells(place, SIZE, halvings)
        nobody &= ~mine
        assert torch.equal(other[:, ~mine], out[:, ~mine])
        assert ((other - out)[:, mine].abs().amax(-1) > 0).all()
    assert torch.equal(out[:, nobody], bare[:, nobody])


@pytest.mark.parametrize("name", PLACES)
def test_gates_sum_to_one_at_most(name: str) -> None:
    places = PLACES[name]
    for site in site_names("sd15"):
        grid = Grid(*SIZE)
        gates = region_masks.gains(places, grid, site.halvings, site.level, region_masks.GATE_POWERS)
        total = region_masks.add_gates([gate for gate in gates if gate is not None])
        assert float(total.max()) <= 1
        union = torch.stack([touched_cells(place, SIZE, site.halvings) for place in places]).any(0)
        assert torch.equal(total[0] > 0, union)


# By words.


def talking(base: Base, count: int, **changes: Any) -> tuple[Identity, ...]:
    """Persons with words of one, two, three tokens, by an adapter with MIP-Adapter's layers."""
    return tuple(
        replace(
            Identity(wanting_adapter(base), tiny.tokens(seed=20 + n), 0.7, entity=tiny.entity(1 + n, seed=40 + n)),
            **changes,
        )
        for n in range(count)
    )


@pytest.mark.parametrize("count", [2, 3])
def test_words_divide_the_picture_as_in_mip_adapter(host: Host, count: int) -> None:
    """Without masks; the numbers of an independent attention processor in diffusers' UNet."""
    rows = [Row("uncond"), Row("cond"), Row("text")]
    given = tiny.inputs(host.base, rows)
    identities = talking(host.base, count)
    expected = shared_output(host.base, identities, rows, given)
    out = patched(host, Injection(identities, sharing="words"), rows, given)
    assert largest(expected - unpatched(host, tuple(rows))) > 0.05
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_words_divide_the_picture_for_any_adapter(host: Host) -> None:
    """Without MIP-Adapter's layers [ours]."""
    given = tiny.inputs(host.base, PAIR, (16, 24))  # odd sizes are not the same numbers in every host
    words = (tiny.entity(2, seed=41), tiny.entity(3, seed=42))
    identities = tuple(someone(host.base, seed=20 + n, entity=entity) for n, entity in enumerate(words))
    expected = shared_output(host.base, identities, PAIR, given)
    torch.testing.assert_close(
        patched(host, Injection(identities, sharing="words"), given=given), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("mask", [None, SOME], ids=["whole picture", "mask"])
def test_shares_by_words_sum_to_one(small: Host, mask: Tensor | None) -> None:
    """Three times the same person is that person once, however the words divide the picture."""
    one = someone(small.base, mask=mask)
    thrice = tuple(replace(one, entity=tiny.entity(2, seed=seed)) for seed in (41, 42, 43))
    once = patched(small, Injection((one,), powers=POWERLESS))
    shared = patched(small, Injection(thrice, powers=POWERLESS, sharing="words"))
    torch.testing.assert_close(shared, once, atol=1e-5, rtol=0)


def test_regions_hold_by_words_too(small: Host) -> None:
    """A person's term is zero outside their region, and inside it no more than without the others."""
    left, right = boxes((0.0, 0.6), (0.4, 1.0))
    a, b = (
        someone(small.base, seed=20 + n, mask=mask, entity=tiny.entity(2, seed=41 + n))
        for n, mask in enumerate((left, right))
    )
    given = tiny.inputs(small.base, PAIR, SIZE)
    only = Schedule(sites={i: float(i == FIRST) for i in range(16)})

    def first(*who: Identity) -> tuple[Tensor, Tensor]:
        return seen_at_sites(small, Injection(who, schedule=only, sharing="words"), PAIR, given)[FIRST]

    out, bare = first(a, b)
    other, _ = first(a, replace(b, tokens=tiny.tokens(seed=91)))
    mine = touched_cells(right, SIZE, 0)
    assert torch.equal(other[:, ~mine], out[:, ~mine])
    assert ((other - out)[:, mine].abs().amax(-1) > 0).all()
    nobody = ~(mine | touched_cells(left, SIZE, 0))
    assert torch.equal(out[:, nobody], bare[:, nobody])


def test_one_person_shares_with_nobody(small: Host) -> None:
    one = someone(small.base, mask=SOME, entity=tiny.entity())
    alone, placed = (patched(small, Injection((one,), sharing=sharing)) for sharing in ("words", "regions"))
    assert torch.equal(alone, placed)
    beside = patched(small, Injection((one, replace(one, weight=0.0)), sharing="words"))
    assert torch.equal(beside, placed), "somebody who is switched off is not there"


@pytest.mark.parametrize("text", [TextPathway(strict=True), TextPathway(emphasis=1.0)], ids=["strict", "emphasis"])
def test_words_go_with_the_text_pathway(small: Host, text: TextPathway) -> None:
    """Outside all regions the picture of a strict text region is the one without the adapter."""
    left, right = tiny.box(0, 0, 0.25, 0.5), tiny.box(0.25, 0, 0.5, 0.5)
    identities = tuple(
        someone(small.base, seed=20 + n, mask=mask, entity=tiny.entity(2, seed=41 + n))
        for n, mask in enumerate((left, right))
    )
    out = patched(small, Injection(identities, text=text, sharing="words"))
    expected = unpatched(small, PAIR)
    assert largest((out - expected)[:, :, :8, :8]) > 1e-2
    if text.strict:
        torch.testing.assert_close(out[:, :, 8:], expected[:, :, 8:], atol=1e-5, rtol=0)


def test_words_must_be_there() -> None:
    with pytest.raises(HostError, match="share by words"):
        Injection((someone("sd15"), someone("sd15", entity=tiny.entity())), sharing="words")
    assert Injection((someone("sd15"),) * 2).folded
    assert not Injection((someone("sd15", entity=tiny.entity()),) * 2, sharing="words").folded
