"""The attention of a prompt's words, seen in every host, against a computation from the layers' inputs and weights."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.projection import FaceProjection
from dp_adapter.core.regions.attention_maps import find_regions
from dp_adapter.core.regions.track import Track
from dp_adapter.core.types import Grid, Row, Site, Step, Tokens
from dp_adapter.hosts.attach import diffusers as diffusers_host
from dp_adapter.hosts.attach import ldm as ldm_host
from dp_adapter.hosts.attach.sites import Base, site_names
from dp_adapter.hosts.attach.word_maps import KEEP, WordMaps, looked_at
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.prompts import encode_prompts
from dp_adapter.hosts.rows.a1111_rows import CfgRows
from tests import tiny
from tests.hosts.protocol import Host, Ldm, same_state, state_of, unpatched

COND, UNCOND = Row("cond"), Row("uncond")
LOOKED_AT: Mapping[Base, Sequence[int]] = {
    "sd15": [*range(6, 12), 15],  # both inner up blocks, and the middle
    "sdxl": [24, 29, 34, 39, 44, 49, 60, 65],  # every fifth of the innermost up block, and of the middle
}
SIZE = (16, 24)


def injection(base: Base, *, mask: Tensor | None = None, **changes: Any) -> Injection:
    """Someone who has no place yet, or the given one."""
    track = Track(torch.zeros(1, 16, 16) if mask is None else mask)
    return replace(Injection((Identity(tiny.adapter(base), tiny.tokens(), track=track),)), **changes)


def shares(host: Host, given: tiny.Inputs, words: Sequence[Sequence[int]]) -> Tensor:
    """Per row the words' share [R, h, w], summed over the sites, from what goes into them."""
    inputs: dict[int, tuple[Tensor, Tensor]] = {}

    def catch(index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
            x, context = (*args, *named.values())[:2]
            inputs.setdefault(index, (x.double(), context.double()))

        return hook

    with ExitStack() as stack:
        for index in LOOKED_AT[host.base]:
            attn2 = host.block(index).get_submodule("attn2")
            stack.callback(attn2.register_forward_pre_hook(catch(index), with_kwargs=True).remove)
        host(given)
    maps: list[Tensor] = []
    for index, (x, context) in inputs.items():
        attn2 = host.block(index).get_submodule("attn2")
        w_q, w_k = (attn2.get_parameter(f"to_{name}.weight").double() for name in "qk")
        width = w_q.shape[0] // int(getattr(attn2, "heads"))  # noqa: B009
        rows: list[Tensor] = []
        for row, tokens in enumerate(words):
            heads = [
                torch.softmax(x[row] @ w_q[part].T @ (context[row] @ w_k[part].T).T / width**0.5, -1)[:, list(tokens)]
                for part in (slice(start, start + width) for start in range(0, len(w_q), width))
            ]
            rows.append(torch.stack(heads).sum(-1).mean(0))
        down = 2 ** site_names(host.base)[index].halvings
        maps.append(torch.stack(rows).unflatten(1, (given.latents.shape[-2] // down, given.latents.shape[-1] // down)))
    finest = max((one.shape[-2:] for one in maps), key=lambda size: size[0] * size[1])
    return torch.stack([F.interpolate(one[None], finest, mode="bilinear")[0] for one in maps]).sum(0)


def scaled(share: Tensor) -> Tensor:
    return (share / share.amax((-2, -1), keepdim=True)).float()


def seen(maps: WordMaps) -> Tensor:
    latest = maps.latest()
    assert latest is not None
    return latest


def close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rows", [(COND, UNCOND), (UNCOND, COND), (COND,)], ids=["cond first", "uncond first", "alone"])
def test_map_is_the_words_share(host: Host, rows: Sequence[Row]) -> None:
    given = tiny.inputs(host.base, rows, SIZE)
    maps = WordMaps([[(2, 5)]])
    assert maps.latest() is None
    with host.attached(injection(host.base), rows, maps):
        assert maps.updates == 0
        out = host(given)
    assert torch.equal(out, unpatched(host, rows, SIZE)), "looking changes nothing"
    expected = shares(host, given, [(2, 5)] * len(rows))[rows.index(COND)]
    assert maps.updates == 1
    assert seen(maps).dtype == torch.float32
    assert seen(maps).shape == (1, *expected.shape)
    close(seen(maps)[0], scaled(expected))


def test_nothing_is_looked_at_without_words(small: Host) -> None:
    before = state_of(small.model)
    maps = WordMaps([[()], [(), ()]])
    with small.attached(injection(small.base), [COND, UNCOND], maps):
        with small.attached(injection(small.base), [COND, UNCOND]):
            unobserved = sum(len(module._forward_hooks) for module in small.model.modules())
        assert sum(len(module._forward_hooks) for module in small.model.modules()) * 2 == unobserved
        small(tiny.inputs(small.base, [COND, UNCOND]))
    assert maps.latest() is None
    assert same_state(before, state_of(small.model))


def test_every_picture_has_its_own_map(small: Host) -> None:
    """The third one's prompt has no such word."""
    rows = [Row(kind, sample) for kind in ("uncond", "cond") for sample in (0, 1, 2)]
    given = tiny.inputs(small.base, rows, SIZE)
    maps = WordMaps([[(1,)], [(3, 4)], [()]])
    with small.attached(injection(small.base), rows, maps):
        small(given)
    expected = shares(small, given, [()] * 3 + [(1,), (3, 4), ()])
    close(seen(maps)[:2], scaled(expected[3:5]))
    assert not seen(maps)[2].any()


def test_joined_prompts_that_have_the_word(small: Host) -> None:
    rows = [UNCOND, Row("cond", 0, 1), Row("cond", 0, 0), Row("cond", 0, 2)]
    given = tiny.inputs(small.base, rows, SIZE)
    maps = WordMaps([[(1,), (), (6,)]])
    with small.attached(injection(small.base), rows, maps):
        small(given)
    expected = shares(small, given, [(), (), (1,), (6,)])
    close(seen(maps)[0], scaled(expected[2] + expected[3]))


def test_a_row_whose_prompt_is_not_known_is_left_out(small: Host) -> None:
    maps = WordMaps([[(1,), (2,)]])
    with small.attached(injection(small.base), [Row("cond", 0, None)], maps):
        small(tiny.inputs(small.base, [COND]))
    assert maps.latest() is None
    assert maps.updates == 0


def test_split_calls_are_one_step(small: Host) -> None:
    rows = [Row("cond", 0), Row("cond", 1), Row("uncond", 0), Row("uncond", 1)]
    given = tiny.inputs(small.base, rows, SIZE)
    joined, split = WordMaps([[(1,)], [(2,)]]), WordMaps([[(1,)], [(2,)]])
    with small.attached(injection(small.base), rows, joined):
        small(given)
    for number, row in enumerate(rows):  # one attachment for each, because its rows are fixed
        with small.attached(injection(small.base), [row], split):
            small(given.rows([number]))
    assert split.updates == 1
    close(seen(split), seen(joined))


def test_the_webuis_sampler_says_which_of_the_joined_prompts_a_split_call_has() -> None:
    host = Ldm("sd15")
    rows = [Row("cond", 0, 0), Row("cond", 0, 1), UNCOND]
    given = tiny.inputs("sd15", rows, SIZE)
    told, maps = CfgRows(), WordMaps([[(), (4,)]])
    with torch.no_grad(), ldm_host.attach(host.model, injection("sd15"), told, maps=maps):
        told.announce([[(0, 1.0), (1, 1.0)]], given.latents, given.context[:2], given.context[2:])
        for number in range(3):
            host(given.rows([number]))
        expected = shares(host, given, [(), (4,), ()])
    close(seen(maps)[0], scaled(expected[1]))


def test_maps_are_smoothed_over_noise_levels(small: Host) -> None:
    rows = [COND, UNCOND]
    given = [tiny.inputs(small.base, rows, SIZE, seed) for seed in (1, 2, 3)]
    maps = WordMaps([[(2,)]])
    with small.attached(injection(small.base), rows, maps):
        small(given[0], timestep=900.0)
        first = seen(maps)
        small(given[1], timestep=900.0)  # the second look of a sampler, or of another extension
        assert torch.equal(seen(maps), first)
        assert maps.updates == 1
        small(given[2], timestep=600.0)
    assert maps.updates == 2
    alone = WordMaps([[(2,)]])
    with small.attached(injection(small.base), rows, alone):
        small(given[2], timestep=600.0)
    close(seen(maps), KEEP * first + (1 - KEEP) * seen(alone))


def test_a_stopped_map_stays(small: Host) -> None:
    rows, maps = [COND, UNCOND], WordMaps([[(2,)]])
    with small.attached(injection(small.base), rows, maps):
        small(tiny.inputs(small.base, rows, seed=1), timestep=900.0)
        before = seen(maps)
        maps.stop()
        small(tiny.inputs(small.base, rows, seed=2), timestep=600.0)
    assert torch.equal(seen(maps), before)
    assert maps.updates == 1


def test_tiles_are_left_out(small: Host) -> None:
    rows, maps = [COND, UNCOND], WordMaps([[(2,)]], Grid(32, 32))
    with small.attached(injection(small.base), rows, maps):
        small(tiny.inputs(small.base, rows))
        assert maps.latest() is None
        small(tiny.inputs(small.base, rows, (32, 32)))
    assert seen(maps).shape == (1, 16, 16)


@pytest.mark.parametrize("form", ["folded", "half", "plain"])
def test_it_looks_on_while_the_identity_acts(host: Host, form: Any) -> None:
    rows, one = [COND, UNCOND], injection(host.base, mask=tiny.box(0, 0, 0.5, 0.5), form=form)
    given = tiny.inputs(host.base, rows)
    maps = WordMaps([[(1, 2)]])
    with host.attached(one, rows):
        unobserved = host(given)
        expected = shares(host, given, [(1, 2)] * 2)
    with host.attached(one, rows, maps):
        assert torch.equal(host(given), unobserved)
    close(seen(maps)[0], scaled(expected[0]))


def test_strict_twins_are_left_out(small: Host) -> None:
    rows = [UNCOND, COND]
    strict = injection(small.base, mask=tiny.box(0, 0, 0.5, 0.5), text=TextPathway(strict=True))
    given = tiny.inputs(small.base, rows)
    maps = WordMaps([[(1,)]])
    with small.attached(strict, rows):
        expected = shares(small, given, [(1,)] * 4)
    with small.attached(strict, rows, maps):
        small(given)
    close(seen(maps)[0], scaled(expected[1]))


def text(seed: int, length: int) -> Tensor:
    return torch.randn(1, length, tiny.CONTEXT, generator=torch.Generator().manual_seed(seed))


CONTEXTS = {
    "one chunk": (text(1, 77), (3, 80), (3,)),
    "two chunks": (text(1, 154), (3, 80), (3, 80)),
    "padded with another chunk": (torch.cat([text(1, 77), text(2, 77)], 1), (3,), (3,)),
    "repeated, as in Forge": (text(1, 77).repeat(1, 3, 1), (3, 5), (3, 5, 80, 82, 157, 159)),
    "two chunks repeated": (text(1, 154).repeat(1, 3, 1), (3, 80), (3, 80, 157, 234, 311, 388)),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_of_several_chunks(small: Host, name: str) -> None:
    context, positions, meant = CONTEXTS[name]
    given = tiny.inputs(small.base, [COND], SIZE)
    given = replace(given, context=context)
    maps = WordMaps([[positions]])
    with small.attached(injection(small.base), [COND], maps):
        small(given)
    close(seen(maps)[0], scaled(shares(small, given, [meant])[0]))


def test_after_an_exception_it_is_gone(small: Host) -> None:
    before = state_of(small.model)
    maps = WordMaps([[(1,)]])
    with pytest.raises(ZeroDivisionError), small.attached(injection(small.base), [COND], maps):
        raise ZeroDivisionError
    assert same_state(before, state_of(small.model))


@pytest.mark.parametrize("sampler", ["euler_a", "heun", "pndm", "dpmpp_2m_sde_karras"])
def test_a_samplers_step_is_one_update(tiny_folder: Path, sampler: str) -> None:
    """Heun looks twice at a level, as the end of one step and the start of the next; PNDM once more at its second."""
    job = load_pipeline.DiffusersJob("a man in a garden", width=64, height=64, steps=4, batch=2, sampler=sampler)
    pipeline = load_pipeline.load(tiny_folder, "cpu")
    found = encode_prompts.person_words(pipeline, job.prompt, job.batch)
    sites = diffusers_host.sites_of(pipeline.unet)
    context = pipeline.unet.config.cross_attention_dim
    adapter = Adapter(FaceProjection(8, 8, 4, context), [SiteAdapter(context, site.channels) for site in sites])
    someone = Identity(adapter, Tokens(*torch.zeros(2, 4, context)), track=Track(torch.zeros(1, 8, 8)))
    maps, updates = WordMaps(found.tokens), list[int]()

    def around(running: Any) -> AbstractContextManager[object]:
        rows = diffusers_host.pipeline_rows(running)
        return diffusers_host.attach(running.unet, Injection((someone,)), rows, maps=maps)

    def count(_done: int, _total: int) -> None:
        updates.append(maps.updates)

    load_pipeline.run(pipeline, job, count, around)
    assert sorted(set(updates)) == [1, 2, 3, 4]
    assert seen(maps).shape == (2, 4, 4)
    assert seen(maps).amax((1, 2)).min() > 0.5


# By hand: one site whose q and k are what we say.


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Identity(), nn.Identity()


SITES = [Site(name.index, name.diffusers, name.level, name.halvings, 8, 2) for name in site_names("sd15")]


@contextmanager
def by_hand(maps: WordMaps) -> Generator[nn.Module]:
    attention = {site.index: Attention() for site in SITES}
    with ExitStack() as stack:
        maps.listen(stack, SITES, lambda site: attention[site.index])
        yield attention[9]  # 32 x 32 cells of 64 x 64 latents
    assert not any(len(module._forward_hooks) for one in attention.values() for module in one.modules())


def look(attn2: nn.Module, q: Tensor, k: Tensor) -> None:
    attn2.get_submodule("to_q")(q)
    attn2.get_submodule("to_k")(k)


def crafted() -> tuple[Tensor, Tensor]:
    """q [2, 1024, 8] and k [2, 77, 8] of an unconditional and a conditional row.

    The conditional one's words 4 and 9 are looked at from cells in the upper right, the other's in the lower left.
    """
    q, k = torch.zeros(2, 32, 32, 8), torch.zeros(2, 77, 8)
    q[0, 22:30, 3:11, 0] = q[1, 4:12, 20:28, 0] = 10.0
    k[:, [4, 9], 0] = 1.0
    return q.flatten(1, 2), k


def test_a_word_looked_at_from_one_place_gives_a_region_there() -> None:
    q, k = crafted()
    maps = WordMaps([[(4,)]])
    with by_hand(maps) as attn2:
        maps.enter(Step(0.1, (UNCOND, COND), Grid(64, 64)))
        look(attn2, q, k)
    (region,) = find_regions(seen(maps)[0], people=1, head=True)
    assert region is not None
    assert (region[4:12, 20:28].sum() / region.sum()).item() > 0.6
    assert region[5:11, 21:27].all()


@pytest.mark.parametrize("change", ["rows", "positions", "keys"])
def test_what_others_changed_inside_the_attention_is_left_out(change: str) -> None:
    """Regional prompts split rows, high-resolution fixes change the grid."""
    q, k = crafted()
    q = q.repeat(2, 1, 1) if change == "rows" else q[:, ::4] if change == "positions" else q
    k = k.repeat(2, 1, 1) if change != "positions" else k
    maps = WordMaps([[(4,)]])
    with by_hand(maps) as attn2:
        maps.enter(Step(0.1, (UNCOND, COND), Grid(64, 64)))
        look(attn2, q, k)
        assert maps.latest() is None
        look(attn2, *crafted())
        assert maps.updates == 1


def test_calls_that_are_nobodys_are_left_out() -> None:
    maps = WordMaps([[(4,)]])
    with by_hand(maps) as attn2:
        look(attn2, *crafted())  # before the first step
        maps.enter(Step(0.1, (UNCOND, COND), Grid(64, 64)))
        look(attn2, *crafted())
        first = seen(maps)
        look(attn2, *(one.flip(0) for one in crafted()))  # once more in the same call
        maps.enter(None)
        look(attn2, *(one.flip(0) for one in crafted()))
    assert torch.equal(seen(maps), first)


def test_rows_of_pictures_that_nobody_described_are_left_out() -> None:
    maps = WordMaps([[(4,)]])
    with by_hand(maps) as attn2:
        maps.enter(Step(0.1, (Row("cond", 1), Row("cond", 0, 1)), Grid(64, 64)))
        look(attn2, *crafted())
    assert maps.latest() is None


def test_a_level_without_a_number_is_left_out() -> None:
    q, k = crafted()
    maps = WordMaps([[(4,)]])
    with by_hand(maps) as attn2:
        maps.enter(Step(0.1, (UNCOND, COND), Grid(64, 64)))
        look(attn2, q, k)
        first = seen(maps)
        maps.enter(Step(0.2, (UNCOND, COND), Grid(64, 64)))
        look(attn2, q * float("nan"), k)
    assert torch.equal(seen(maps), first)


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_the_sites(base: Base) -> None:
    sites = [Site(name.index, name.diffusers, name.level, name.halvings, 8, 2) for name in site_names(base)]
    assert [site.index for site in looked_at(sites)] == LOOKED_AT[base]
