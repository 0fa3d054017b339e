"""Self-attention to photos, on every host: the numbers, where it acts, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.reference_photo import ReferencePhoto
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.types import Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import diffusers as diffusers_host
from dp_adapter.hosts.attach.sites import site_names
from tests import tiny
from tests.hosts import forge_host
from tests.hosts.attach.test_conformance import (
    COND,
    PAIR,
    POWERLESS,
    PROGRESS,
    QUARTER,
    SOME,
    UNCOND,
    largest,
    patched,
    someone,
    someone_gated,
    someone_trained,
)
from tests.hosts.protocol import Host, same_state, state_of, unpatched
from tests.hosts.reference_processor import Photo, joined_output

PERSON = tiny.box(0.5, 0.25, 1, 1)  # of the photo; on cell edges of every grid but the coarsest


def photo(
    seed: int = 20, mask: Tensor | None = PERSON, size: tuple[int, int] = (16, 16), **changes: Any
) -> ReferencePhoto:
    latents = torch.randn(4, *size, generator=torch.Generator().manual_seed(seed))
    return ReferencePhoto(latents, mask, seed=seed, **changes)


def only_looking(host: Host, reference: ReferencePhoto, **changes: Any) -> Identity:
    return replace(someone(host.base, weight=0.0, mask=QUARTER, reference=reference), **changes)


def noisy(reference: ReferencePhoto) -> Tensor:
    a = tiny.ALPHAS[int(tiny.TIMESTEP)]
    noise = torch.randn(reference.latents.shape, generator=torch.Generator().manual_seed(reference.seed))
    return a.sqrt() * reference.latents + (1 - a).sqrt() * noise


def drawn(reference: ReferencePhoto, region: Tensor | None = None) -> Photo:
    """As the reference processor takes it; masks with a number for each cell of the latents."""
    whole = torch.ones(1, 16, 16)
    masks = [whole if mask is None else mask[:, ::8, ::8] for mask in (region, reference.mask)]
    return Photo(noisy(reference), masks[0], masks[1], reference.weight)


HALF = tiny.box(0.5, 0, 1, 1)


@pytest.mark.parametrize("region", [None, QUARTER], ids=["whole picture", "region"])
@pytest.mark.parametrize("mask", [None, HALF], ids=["whole photo", "person"])
def test_it_is_the_published_attention(host: Host, region: Tensor | None, mask: Tensor | None) -> None:
    given, reference = tiny.inputs(host.base, PAIR), photo(mask=mask, weight=0.7)
    injection = Injection((only_looking(host, reference, mask=region),), powers=POWERLESS)
    out = patched(host, injection)
    expected = joined_output(host.base, given, [drawn(reference, region)], 1)
    assert largest(expected - unpatched(host, PAIR)) > 1e-2
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_beside_the_identity_attention(host: Host) -> None:
    given, reference, one = tiny.inputs(host.base, PAIR), photo(mask=HALF), someone(host.base)
    out = patched(host, Injection((replace(one, reference=reference),)))
    expected = joined_output(host.base, given, [drawn(reference)], 1, (one.adapter, one.tokens))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert largest(out - patched(host, Injection((one,)))) > 1e-2


def test_two_persons_have_a_photo_and_a_region_each(small: Host) -> None:
    given, left = tiny.inputs(small.base, PAIR), tiny.box(0, 0, 0.5, 1)
    photos = [photo(20, HALF), photo(21, left, weight=0.5)]
    people = tuple(only_looking(small, one, mask=mask) for one, mask in zip(photos, (left, HALF), strict=True))
    out = patched(small, Injection(people, powers=POWERLESS))
    shown = [drawn(one, mask) for one, mask in zip(photos, (left, HALF), strict=True)]
    torch.testing.assert_close(out, joined_output(small.base, given, shown, 1), atol=1e-5, rtol=0)


def test_without_an_unconditional_row_the_photo_has_the_first_rows_text(small: Host) -> None:
    rows, reference = (COND,), photo(mask=HALF)
    injection = Injection((only_looking(small, reference),), powers=POWERLESS)
    expected = joined_output(small.base, tiny.inputs(small.base, rows), [drawn(reference, QUARTER)], 0)
    torch.testing.assert_close(patched(small, injection, rows), expected, atol=1e-5, rtol=0)


ROWS: dict[str, tuple[Row, ...]] = {
    "uncond first": (UNCOND, COND),
    "AND": (COND, COND, UNCOND),
    "batch of two": tuple(Row(kind, sample) for kind in ("cond", "uncond") for sample in (0, 1)),
    "text row": (Row("text"), COND, UNCOND),
}


@pytest.mark.parametrize("layout", ROWS)
@pytest.mark.parametrize("strict", [False, True])
def test_every_row_gets_what_it_would_get_alone(small: Host, layout: str, strict: bool) -> None:
    """Alone but for an unconditional row, whose text the photo has."""
    rows = ROWS[layout]
    two = torch.cat([SOME, tiny.box(0, 0.5, 0.5, 1)])
    given = tiny.inputs(small.base, rows)
    source = next(number for number, row in enumerate(rows) if row.kind == "uncond")

    def injection(mask: Tensor) -> Injection:
        one = someone(small.base, mask=mask, reference=photo())
        return Injection((one,), text=TextPathway(strict=strict))

    out = patched(small, injection(two), rows)
    for number, row in enumerate(rows):
        order = [number] if number == source else [source, number]
        mask = two[row.sample : row.sample + 1]
        alone = patched(small, injection(mask), [Row(rows[one].kind) for one in order], given.rows(order))
        torch.testing.assert_close(out[number], alone[-1], atol=1e-5, rtol=0)


IDLE: dict[str, dict[str, Any]] = {
    "weight 0": {"weight": 0.0},
    "before": {"start": PROGRESS + 0.01},
    "after": {"end": PROGRESS - 0.01},
    "nobody in the photo": {"mask": torch.zeros(1, 64, 64)},
}


@pytest.mark.parametrize("idle", IDLE)
@pytest.mark.parametrize("acting", [False, True])
def test_idle_is_bit_equal(small: Host, idle: str, acting: bool) -> None:
    """Without a further row, also beside an identity that acts."""
    one = someone(small.base, mask=SOME, weight=float(acting))
    expected = patched(small, Injection((one,)))
    looking = replace(one, reference=photo(**IDLE[idle]))
    rows: list[int] = []

    def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["hidden_states"]))

    handle = small.block(0).register_forward_pre_hook(count, with_kwargs=True)
    try:
        assert torch.equal(patched(small, Injection((looking,))), expected)
    finally:
        handle.remove()
    assert rows == [2]


def test_it_acts_where_the_identity_never_does(small: Host) -> None:
    """The photo has a span of its own."""
    one = someone(small.base, reference=photo())
    injection = Injection((one,), schedule=Schedule(start=0.8, end=0.2))
    assert injection.active
    looking = patched(small, Injection((replace(one, weight=0.0),)))
    assert torch.equal(patched(small, injection), looking)
    assert largest(looking - unpatched(small, PAIR)) > 1e-2


def attention_of(host: Host, index: int, injection: Injection) -> tuple[Tensor, Tensor]:
    """What a site's self-attention returned in a call, and what it returns bare for the same input."""
    attn1 = host.block(index).get_submodule("attn1")
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        calls.append((args, kwargs, output))

    with ExitStack() as stack:
        stack.callback(attn1.register_forward_hook(note, with_kwargs=True).remove)
        patched(host, injection)
    ((args, kwargs, out),) = calls
    return out, attn1(*args, **kwargs)


def test_outside_the_region_and_in_other_rows_nothing_changes_at_a_site(small: Host) -> None:
    index = next(site.index for site in site_names(small.base) if site.diffusers.startswith("up_blocks.3"))
    out, bare = attention_of(small, index, Injection((only_looking(small, photo()),)))
    inside = QUARTER[0, ::8, ::8].flatten() > 0
    assert out.shape[0] == 3, "one further row"
    assert torch.equal(out[:2, ~inside], bare[:2, ~inside]) and torch.equal(out[2], bare[2])
    assert ((out - bare)[:2, inside].abs().amax(-1) > 0).all()
    out, bare = attention_of(small, 0, Injection((only_looking(small, photo()),)))
    assert torch.equal(out, bare), "not on the way down"


def test_a_strict_region_keeps_the_background(small: Host) -> None:
    one = someone(small.base, mask=SOME, reference=photo())
    out = patched(small, Injection((one,), text=TextPathway(strict=True)))
    inside = torch.nn.functional.max_pool2d(SOME[None], 8).bool()[0].expand(2, 4, -1, -1)
    base = unpatched(small, PAIR)
    assert largest((out - base)[~inside]) < 5e-6
    without = patched(small, Injection((replace(one, reference=None),), text=TextPathway(strict=True)))
    assert largest((out - without)[inside]) > 1e-3


@pytest.mark.parametrize("who", [someone, someone_trained, someone_gated])
def test_everything_returns(small: Host, who: Any) -> None:
    before = state_of(small.model)
    patched(small, Injection((who(small.base, mask=SOME, reference=photo()),)))
    assert same_state(before, state_of(small.model))
    assert torch.equal(small(tiny.inputs(small.base, PAIR)), unpatched(small, PAIR))


def test_sdxl_everything_returns(large: Host) -> None:
    before = state_of(large.model)
    patched(large, Injection((someone(large.base, mask=SOME, reference=photo()),)))
    assert same_state(before, state_of(large.model))


def test_another_size_is_refused(small: Host) -> None:
    injection = Injection((only_looking(small, photo()),))
    with pytest.raises(HostError, match="184 x 136 pixels, but the photo is shown at 128 x 128"):
        patched(small, injection, PAIR, tiny.inputs(small.base, PAIR, (17, 23)))
    odd = Injection((only_looking(small, photo(size=(17, 23))),))
    out = patched(small, odd, PAIR, tiny.inputs(small.base, PAIR, (17, 23)))
    assert largest(out - unpatched(small, PAIR, (17, 23))) > 1e-2


def _halved(x: Tensor) -> Tensor:
    return x[:, ::2]


def _in_tiles(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[1] // 4, x.shape[2])


@pytest.mark.parametrize("change", [_halved, _in_tiles])
def test_changed_rows_and_tokens_are_refused(small: Host, change: Callable[[Tensor], Tensor]) -> None:
    """What a late self-attention gets is changed as extensions do."""

    def before(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        return tuple(change(one) if isinstance(one, Tensor) else one for one in args)

    with ExitStack() as stack:
        stack.callback(small.block(14).get_submodule("attn1").register_forward_pre_hook(before).remove)
        with pytest.raises(HostError, match="Inside the self-attention at up_blocks"):
            patched(small, Injection((only_looking(small, photo()),)))


def test_in_forge_a_batch_keeps_its_chunks() -> None:
    """Photos come as many as the batch has pictures, and the numbers are those of single rows."""
    host = forge_host.Forge("sd15")
    rows, given = ROWS["batch of two"], tiny.inputs("sd15", ROWS["batch of two"])
    injection = Injection((someone("sd15", mask=SOME, reference=photo()),), text=TextPathway(strict=True))
    chunks: list[tuple[int, int]] = []

    def look(n: Tensor, extra: dict[str, Any]) -> Tensor:
        chunks.append((len(n), len(extra["cond_or_uncond"])))
        return n

    with torch.no_grad(), host.attached(injection, rows):
        alone = host(given)
        host.unet.set_model_patch(look, "attn2_output_patch")
        together = host(given, marks=[0, 1])
    assert set(chunks) == {(10, 5)}, "four rows, their twins, and two of the photo"
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_schedule_is_needed() -> None:
    one = Identity(tiny.adapter("sd15"), tiny.tokens(), reference=photo())
    with (
        pytest.raises(HostError, match="noise schedule"),
        diffusers_host.attach(tiny.unet("sd15"), Injection((one,)), PAIR),
    ):
        pass


def test_controls_are_not_about_the_photo() -> None:
    """A ControlNet's residuals are zero in the photo's row: the same as with a control that leaves that row alone."""
    model = tiny.unet("sd15")
    given = tiny.inputs("sd15", PAIR)
    mid = torch.randn(2, 48, 2, 2, generator=torch.Generator().manual_seed(1))
    shapes: list[Tensor] = []

    def note(_module: nn.Module, _args: Any, output: Tensor) -> None:
        shapes.append(output)

    handle = model.mid_block.register_forward_hook(note)  # type: ignore[union-attr]
    reference = photo()
    one = Identity(tiny.adapter("sd15"), tiny.tokens(), 0.0, reference=reference)
    seen: list[Tensor] = []
    entering = model.up_blocks[0].register_forward_pre_hook(  # what the middle gave, with the residual
        lambda _m, _a, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad(), diffusers_host.attach(model, Injection((one,)), PAIR, alphas_cumprod=tiny.ALPHAS):
        down = tuple(torch.zeros(1) for _ in range(12))
        model(
            given.latents, 400, given.context, mid_block_additional_residual=mid, down_block_additional_residuals=down
        )
    handle.remove()
    entering.remove()
    added = seen[0] - shapes[0]
    torch.testing.assert_close(added[:2], mid, atol=1e-5, rtol=0)
    assert not added[2].any()
