"""Identities on the text side, on every host: the changed context in the person's region, with its locks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.text.text_side import LearnedChunk, Lock, Positions, TextIdentity
from dp_adapter.core.types import Row, Tokens
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.sites import Base, site_names
from tests import tiny
from tests.hosts.attach.test_conformance import QUARTER, SOME, largest, seen_at_sites, someone, touched_cells
from tests.hosts.protocol import Host, unpatched
from tests.hosts.reference import _softmax_attention  # type: ignore[reportPrivateUsage]

COND, UNCOND, SECOND = Row("cond"), Row("uncond"), Row("cond", 1)
PAIR = (COND, UNCOND)
WORD = (2, 3)
NOBODY = Tokens(torch.zeros(0, tiny.CONTEXT), torch.zeros(0, tiny.CONTEXT))
LEFT, RIGHT = tiny.box(0, 0, 0.5, 1), tiny.box(0.5, 0, 1, 1)
NO_SITES = Adapter(torch.nn.Identity(), [])


@dataclass(frozen=True)
class Words:
    """The same places in every text: per person."""

    places: Mapping[int, Positions]
    learned_chunks: tuple[LearnedChunk, ...] = ()

    def positions(self, row: Row, person: int) -> Positions:
        return self.places.get(person, ())


WORDS = Words({0: WORD, 1: (5,)})


def adding(seed: int, everywhere: float = 0.0) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """Adds a vector at the word's positions, and some of it at all others."""
    vector = torch.randn(tiny.CONTEXT, generator=torch.Generator().manual_seed(seed))

    def fuse(context: Tensor, positions: Sequence[int]) -> Tensor:
        assert context.dtype == torch.float32 and context.device.type == "cpu"
        changed = context + everywhere * vector
        changed[list(positions)] = context[list(positions)] + vector
        return changed if positions else context

    return fuse


def by_word(seed: int = 1, lock: Lock = "none", everywhere: float = 0.0, **changes: Any) -> Identity:
    text = TextIdentity(adding(seed, everywhere), len(WORD), lock)
    return replace(Identity(NO_SITES, NOBODY, text=text), **changes)


def patched(host: Host, *identities: Identity, rows: Sequence[Row] = PAIR, **changes: Any) -> Tensor:
    with host.attached(replace(Injection(identities), **changes), rows, words=WORDS):
        return host(tiny.inputs(host.base, rows))


def changed(base: Base, rows: Sequence[Row], seed: int = 1, everywhere: float = 0.0) -> tiny.Inputs:
    """The same call with the context changed in conditional rows."""
    given = tiny.inputs(base, rows)
    context = given.context.clone()
    for number, row in enumerate(rows):
        if row.kind == "cond":
            context[number] = adding(seed, everywhere)(context[number], WORD)
    return replace(given, context=context)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 64, 64)], ids=["no mask", "mask of ones"])
@pytest.mark.parametrize("everywhere", [0.0, 0.3])
def test_everywhere_it_is_the_changed_context(host: Host, mask: Tensor | None, everywhere: float) -> None:
    expected = host(changed(host.base, PAIR, everywhere=everywhere))
    assert largest(expected - unpatched(host, PAIR)) > 0.05
    out = patched(host, by_word(mask=mask, everywhere=everywhere))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert torch.equal(out[1], unpatched(host, PAIR)[1]), "no word in an unconditional row"


IDLE: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "empty mask": ({"mask": torch.zeros(1, 64, 64)}, {}),
    "weight 0": ({"text": replace(TextIdentity(adding(1)), weight=0.0)}, {}),
    "outside the span": ({}, {"schedule": Schedule(end=0.1)}),
    "sites are 0": ({}, {"schedule": Schedule(sites=dict.fromkeys(range(70), 0.0))}),
}


@pytest.mark.parametrize("idle", IDLE)
def test_nothing_to_do_is_bit_equal(small: Host, idle: str) -> None:
    of_identity, of_injection = IDLE[idle]
    assert torch.equal(patched(small, by_word(**of_identity), **of_injection), unpatched(small, PAIR))


def test_a_text_without_the_word_is_bit_equal(small: Host) -> None:
    assert torch.equal(patched(small, by_word(person=7)), unpatched(small, PAIR))


def test_only_inside_the_mask(small: Host) -> None:
    injection = Injection((by_word(mask=SOME),))

    class Telling:
        """``seen_at_sites`` attaches by itself, so the words go along."""

        def __getattr__(self, name: str) -> Any:
            return getattr(small, name)

        def __call__(self, given: tiny.Inputs) -> Tensor:
            return small(given)

        def attached(self, injection: Injection, rows: Sequence[Row]) -> Any:
            return small.attached(injection, rows, words=WORDS)

    seen = seen_at_sites(Telling(), injection, PAIR, tiny.inputs(small.base, PAIR))  # type: ignore[arg-type]
    for site, (out, bare) in zip(site_names(small.base), seen, strict=True):
        inside = touched_cells(SOME, (16, 16), site.halvings)
        assert torch.equal(out[0, ~inside], bare[0, ~inside]) and torch.equal(out[1], bare[1])
        assert largest(out[0, inside] - bare[0, inside]) > 1e-3


def test_strengths_scale_the_difference(small: Host) -> None:
    """To first order in one site, where nothing else moves."""
    alone = Schedule(sites={i: float(i == 9) for i in range(16)})
    text = TextIdentity(adding(1), 2)
    half, by_schedule = (
        patched(small, by_word(text=replace(text, weight=weight)), schedule=schedule)
        for weight, schedule in ((0.5, alone), (1.0, Schedule(sites={i: 0.5 * (i == 9) for i in range(16)})))
    )
    torch.testing.assert_close(half, by_schedule, atol=1e-6, rtol=0)
    assert largest(half - patched(small, by_word(text=text), schedule=alone)) > 1e-4


# Locks, against an attention processor of diffusers.


class Locked:
    """Text attention whose keys and values partly come from another context, [R, L, D]."""

    def __init__(self, context: Tensor, lock: Lock) -> None:
        self.context, self.lock = context, lock

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        to_q, to_k, to_v, to_out = (attn.get_submodule(f"to_{name}") for name in ("q", "k", "v", "out.0"))
        keys = values = self.context
        if self.lock == "key":
            keys = encoder_hidden_states
        if self.lock == "others":
            keys = values = encoder_hidden_states.clone()
            keys[:, list(WORD)] = self.context[:, list(WORD)]
        out: Tensor = to_out(_softmax_attention(to_q(hidden_states), to_k(keys), to_v(values), heads=attn.heads))
        return out


@lru_cache
def locked_output(base: Base, lock: Lock) -> Tensor:
    model = tiny.unet(base)
    for site in site_names(base):
        attn2 = model.get_submodule(site.diffusers + ".attn2")
        attn2.processor = Locked(changed(base, PAIR, everywhere=0.3).context, lock)  # type: ignore[assignment]
    with torch.no_grad():
        return tiny.call(model, tiny.inputs(base, PAIR))


@pytest.mark.parametrize("lock", ["none", "key", "others"])
def test_locks(small: Host, lock: Lock) -> None:
    expected = locked_output(small.base, lock)
    torch.testing.assert_close(patched(small, by_word(lock=lock, everywhere=0.3)), expected, atol=1e-5, rtol=0)
    others = [locked_output(small.base, other) for other in ("none", "key", "others") if other != lock]
    assert all(largest(expected - other) > 1e-3 for other in others)


# Together with all else.


def test_beside_an_attention_of_its_own(host: Host) -> None:
    """With weight 0 of either, the other alone; both are more than each (ConsistentID has both)."""
    one = someone(host.base, mask=SOME)
    both = replace(one, text=TextIdentity(adding(1), 2))
    assert torch.equal(patched(host, replace(both, weight=0.0)), patched(host, by_word(mask=SOME)))
    silent = replace(both, text=TextIdentity(adding(1), 2, weight=0.0))
    assert torch.equal(patched(host, silent, form="plain"), patched(host, one, form="plain"))
    together = patched(host, both)
    assert min(largest(together - patched(host, alone)) for alone in (one, by_word(mask=SOME))) > 1e-3


def test_everywhere_beside_an_attention_of_its_own(small: Host) -> None:
    """The changed context's UNet with the same attention."""
    one = someone(small.base)
    with small.attached(Injection((one,), form="plain"), PAIR):
        expected = small(changed(small.base, PAIR))
    out = patched(small, replace(one, text=TextIdentity(adding(1), 2)))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_several_persons_each_by_their_own_word(small: Host) -> None:
    """At a site, what each adds alone in its region."""
    alone = Schedule(sites={i: float(i == 9) for i in range(16)})
    first = by_word(mask=LEFT)
    second = by_word(2, mask=RIGHT, person=1, text=TextIdentity(adding(2)))
    streams: list[Tensor] = []
    norm = small.block(9).get_submodule("norm3")
    handle = norm.register_forward_pre_hook(lambda _module, args: streams.append(args[0].clone()))
    for who in ((first,), (second,), (first, second)):
        patched(small, *who, schedule=alone)
    small(tiny.inputs(small.base, PAIR))
    handle.remove()
    one, two, both, none = streams
    torch.testing.assert_close(both - none, (one - none) + (two - none), atol=1e-6, rtol=0)
    assert min(largest(one - none), largest(two - none)) > 1e-3


@pytest.mark.parametrize("text", [TextPathway(emphasis=1.5), TextPathway(strict=True), TextPathway(free=True)])
def test_text_pathways_and_twins(small: Host, text: TextPathway) -> None:
    """The unconditional row and, with twins, the background do not know of it."""
    out = patched(small, by_word(mask=QUARTER, free=SOME), text=text)
    base = unpatched(small, PAIR)
    torch.testing.assert_close(out[1], base[1], atol=5e-6, rtol=0)
    assert largest(out[0] - base[0]) > 1e-3
    if text.strict:
        inside = torch.nn.functional.max_pool2d(QUARTER[None], 8).bool()[0].expand_as(out[0])
        assert largest((out[0] - base[0])[~inside]) < 5e-6


def test_a_batch_and_texts_of_several_kinds(small: Host) -> None:
    """Rows in another order, two pictures with texts of their own."""
    rows = (UNCOND, SECOND, COND)
    expected = small(changed(small.base, rows))
    torch.testing.assert_close(patched(small, by_word(), rows=rows), expected, atol=1e-5, rtol=0)


def test_a_text_is_fused_once(small: Host) -> None:
    calls: list[int] = []

    def fuse(context: Tensor, positions: Sequence[int]) -> Tensor:
        calls.append(len(positions))
        return adding(1)(context, positions)

    rows = (COND, UNCOND, SECOND)
    with small.attached(Injection((by_word(text=TextIdentity(fuse, 2)),)), rows, words=WORDS):
        first, other = tiny.inputs(small.base, rows), tiny.inputs(small.base, rows, seed=4)
        outs = [small(given) for given in (first, first, other, first)]
    assert calls == [2] * 4, "two texts in each of two calls"
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[3]) and not torch.equal(outs[0], outs[2])


CHUNKS = 77


def test_long_and_repeated_texts(small: Host) -> None:
    """Each chunk is fused alone, and a text that Forge repeats has its word in each repetition."""
    given = tiny.inputs(small.base, PAIR)
    chunk = torch.randn(2, CHUNKS, tiny.CONTEXT, generator=torch.Generator().manual_seed(3))
    further = torch.randn(2, CHUNKS, tiny.CONTEXT, generator=torch.Generator().manual_seed(4))

    def expected(context: Tensor, *places: int) -> Tensor:
        context = context.clone()
        context[0] = adding(1)(context[0], places)
        return small(replace(given, context=context))

    for context, places in (
        (torch.cat([chunk, further], 1), WORD),
        (torch.cat([chunk, chunk], 1), (*WORD, *(CHUNKS + one for one in WORD))),
    ):
        with small.attached(Injection((by_word(),)), PAIR, words=WORDS):
            out = small(replace(given, context=context))
        torch.testing.assert_close(out, expected(context, *places), atol=1e-5, rtol=0)


def test_one_that_needs_no_word(small: Host) -> None:
    def fuse(context: Tensor, positions: Sequence[int]) -> Tensor:
        assert not positions
        return 0.5 * context

    identity = by_word(text=TextIdentity(fuse, needs_word=False))
    given = tiny.inputs(small.base, PAIR)
    halved = replace(given, context=given.context * torch.tensor([0.5, 1.0])[:, None, None])
    with small.attached(Injection((identity,)), PAIR):
        out = small(given)
    torch.testing.assert_close(out, small(halved), atol=1e-5, rtol=0)


def test_without_words_is_refused(small: Host) -> None:
    with (
        pytest.raises(HostError, match="nobody says where the words stand"),
        small.attached(Injection((by_word(),)), PAIR),
    ):
        pass


def test_two_attachments_at_once(small: Host) -> None:
    """One inside another: neither takes the other's calls of a layer for the host's."""
    first, second = by_word(mask=LEFT), by_word(2, mask=RIGHT, person=1, text=TextIdentity(adding(2)))
    with small.attached(Injection((first,)), PAIR, words=WORDS):
        nested = patched(small, second)
    torch.testing.assert_close(nested, patched(small, first, second), atol=1e-5, rtol=0)
