"""Forge with other extensions around us: clones, foreign patches, wrappers, resized grids; what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import LowRank
from dp_adapter.core.injection import Form, Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.types import Grid, Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import forge
from dp_adapter.hosts.attach.forge_options import sampler_rows
from tests import tiny
from tests.hosts.forge_host import Forge, Model, Patcher, hosts
from tests.hosts.forge_unet import attention_function
from tests.hosts.protocol import same_state, state_of
from tests.precision import FLOAT16

PAIR = (Row("uncond"), Row("cond"))
LEFT = tiny.box(0, 0, 0.5, 1)
FORMS: list[Form] = ["folded", "plain"]


@pytest.fixture(params=list(hosts()), scope="module")
def built(request: pytest.FixtureRequest) -> Forge:
    return hosts()[request.param]("sd15")


@pytest.fixture
def host(built: Forge) -> Iterator[Forge]:
    built.unet = Patcher(Model(built.model))
    before = state_of(built.model)
    with torch.no_grad():
        yield built
    assert same_state(before, state_of(built.model))


def injection(form: Form = "auto", mask: Tensor | None = None, **changes: Any) -> Injection:
    return Injection((Identity(tiny.adapter("sd15"), tiny.tokens(), mask=mask),), form=form, **changes)


def run(host: Forge, what: Injection | None, **call: Any) -> Tensor:
    given = call.pop("given", None) or tiny.inputs("sd15", PAIR)
    if what is None:
        return host(given, marks=(1, 0), **call)
    with forge.attach(host.unet, what, sampler_rows(1)):
        return host(given, marks=(1, 0), **call)


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


# The samplers' rows.


@pytest.mark.parametrize("marks", [(1, 0), (0, 1), (1, 0, 0), (0,), (1,)])
def test_rows_are_those_of_the_call(host: Forge, marks: tuple[int, ...]) -> None:
    rows = [Row("uncond" if mark else "cond", picture) for mark in marks for picture in range(2)]
    what = injection(mask=torch.cat([LEFT, 1 - LEFT]))
    given = tiny.inputs("sd15", rows)
    with forge.attach(host.unet, what, sampler_rows(2)):
        out = host(given, marks=marks)
    with host.attached(what, rows):
        assert torch.equal(host(given), out)
    assert largest(out - host(given, marks=marks)) > 1e-2


def test_a_call_that_is_not_the_samplers_stays_as_it_is(host: Forge) -> None:
    given = tiny.inputs("sd15", PAIR)
    call = (given.latents, torch.full((2,), given.timestep), given.context)
    bare = host.model(*call, transformer_options={})
    with forge.attach(host.unet, injection(), sampler_rows(1)) as attached:
        assert torch.equal(host.model(*call, transformer_options={}), bare)
        assert attached.bypass.calls == 0
        host(given, marks=(1, 0))
        assert attached.bypass.calls == 1


# Clones.


def test_the_patcher_and_its_options_are_not_touched(host: Forge) -> None:
    options = copy.deepcopy(host.unet.model_options)
    with forge.attach(host.unet, injection(), sampler_rows(1)):
        run(host, None)
        assert host.unet.model_options == options


def put_nothing(unet: Any) -> None:
    def same(n: Tensor, _extra: Any) -> Tensor:
        return n

    unet.set_model_patch(same, "attn1_output_patch")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [True, False], ids=["cloned before", "cloned after"])
def test_clones_by_other_extensions_carry_the_injection_without_copying_it(
    host: Forge, form: Form, before: bool
) -> None:
    expected = run(host, injection(form))
    clone = host.unet.clone() if before else None
    what = injection(form)
    with forge.attach(host.unet, what, sampler_rows(1)):
        host.unet = clone or host.unet.clone()
        put_nothing(host.unet)
        assert torch.equal(run(host, None), expected)
    assert "model_function_wrapper" not in host.unet.model_options


def test_attaching_anew_for_the_next_pass(host: Forge) -> None:
    """Forge calls the hook twice before a hires pass, the first time in vain."""
    for size in ((16, 16), (16, 16), (24, 32)):
        with forge.attach(host.unet, injection(), sampler_rows(1)) as attached:
            pass
        assert attached.bypass.calls == 0
        given = tiny.inputs("sd15", PAIR, size)
        assert largest(run(host, injection(mask=LEFT), given=given) - run(host, None, given=given)) > 1e-2


# Foreign patches.


def foreign_identity(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
    """As Forge's IP-Adapter: the text's attention and something of its own."""
    heads = extra["n_heads"]
    return attention_function(q, k, v, heads) + 0.5 * attention_function(q, k.flip(-1), v.flip(-1), heads)


def put_foreign_identity(unet: Any, long_keys: bool) -> None:
    for block, numbers in (("input", (1, 2, 4, 5, 7, 8)), ("output", range(3, 12)), ("middle", (0,))):
        for number in numbers:
            unet.set_model_patch_replace(foreign_identity, "attn2", block, number, 0 if long_keys else None)


@pytest.mark.parametrize("long_keys", [True, False])
@pytest.mark.parametrize("late", [True, False], ids=["after us", "before us"])
def test_a_foreign_replace_patch_and_ours_add_up(host: Forge, long_keys: bool, late: bool) -> None:
    bare = run(host, None)
    outs: list[Tensor] = []
    for form in FORMS:
        host.unet = Patcher(Model(host.model))
        if not late:
            put_foreign_identity(host.unet, long_keys)
        with forge.attach(host.unet, injection(form), sampler_rows(1)):
            if late:
                host.unet = host.unet.clone()
                put_foreign_identity(host.unet, long_keys)
            outs.append(run(host, None))
    foreign = run(host, None)
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=0)
    assert min(largest(foreign - bare), largest(outs[0] - foreign)) > 1e-2
    # Neither is lost: alone, ours gives another picture.
    host.unet = Patcher(Model(host.model))
    assert largest(run(host, injection()) - outs[0]) > 1e-2


def put_regional_prompts(unet: Any) -> None:
    """As sd-forge-couple: rows are repeated before the attention and joined behind it; here with the same prompt."""

    def split(n: Tensor, context: Tensor, value: Tensor, _extra: Any) -> tuple[Tensor, ...]:
        return tuple(torch.cat([x, x]) for x in (n, context, value))

    def join(n: Tensor, _extra: Any) -> Tensor:
        return sum(0.5 * half for half in n.chunk(2))  # type: ignore[return-value]

    unet.set_model_patch(split, "attn2_patch")
    unet.set_model_patch(join, "attn2_output_patch")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("late", [True, False], ids=["after us", "before us"])
def test_regional_prompts_keep_working(host: Forge, form: Form, late: bool) -> None:
    what = injection(form, mask=LEFT)
    expected = run(host, what)
    if not late:
        put_regional_prompts(host.unet)
    with forge.attach(host.unet, what, sampler_rows(1)):
        if late:
            host.unet = host.unet.clone()
            put_regional_prompts(host.unet)
        torch.testing.assert_close(run(host, None), expected, atol=1e-5, rtol=0)


def test_foreign_patches_see_twins_as_rows_of_their_own(host: Forge) -> None:
    seen: list[tuple[int, Any]] = []

    def look(n: Tensor, extra: dict[str, Any]) -> Tensor:
        seen.append((len(n), extra["cond_or_uncond"]))
        return n

    host.unet.set_model_patch(look, "attn1_output_patch")
    run(host, injection(mask=LEFT, text=TextPathway(strict=True)))
    assert seen == [(4, [1, 0, 1, 0])] * 16
    seen.clear()
    run(host, injection(mask=LEFT))
    assert seen == [(2, [1, 0])] * 16


def test_control_residuals_reach_the_twins(host: Forge) -> None:
    """Strict text region: the background is that of the picture with the same ControlNet and no identity."""
    residual = torch.randn(2, 48, 2, 2, generator=torch.Generator().manual_seed(0))
    bare, controlled, out = (
        run(host, what, control={"middle": [residual * scale], "input": [], "output": []})
        for what, scale in ((None, 0), (None, 1), (injection(mask=LEFT, text=TextPathway(strict=True)), 1))
    )
    assert largest(bare - controlled) > 1e-3
    assert largest((out - controlled)[..., 8:]) < 5e-6
    assert largest((out - controlled)[..., :8]) > 1e-2


# Tiles, and grids that are not the latents'.


def tiled(model_function: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
    """As Forge's MultiDiffusion: halves of the picture in one batch, tile by tile."""
    x, c = call["input"], dict(call["c"])
    c["c_crossattn"] = c["c_crossattn"].repeat(2, 1, 1)
    left, right = model_function(torch.cat(x.chunk(2, -1)), call["timestep"].repeat(2), **c).chunk(2)
    return torch.cat([left, right], -1)


def test_tiles_are_rows(host: Forge) -> None:
    given = tiny.inputs("sd15", PAIR, (16, 32))
    halves = [tiny.Inputs(half, given.context) for half in given.latents.chunk(2, -1)]
    alone = torch.cat([run(host, injection(), given=half) for half in halves], -1)
    host.unet.model_options["model_function_wrapper"] = tiled
    torch.testing.assert_close(run(host, injection(), given=given), alone, atol=1e-5, rtol=0)


def test_a_region_in_tiles_is_refused_where_nobody_says_what_they_are_cut_from(host: Forge) -> None:
    host.unet.model_options["model_function_wrapper"] = tiled
    given = tiny.inputs("sd15", PAIR, (16, 32))
    with forge.attach(host.unet, injection(), sampler_rows(1), Grid(16, 32)):
        host(given, marks=(1, 0))
    with (
        forge.attach(host.unet, injection(mask=LEFT), sampler_rows(1), Grid(16, 32)),
        pytest.raises(HostError, match=r"in tiles.*whole picture instead of a region"),
    ):
        host(given, marks=(1, 0))


def put_shrinking(unet: Any) -> None:
    """As Kohya's HRFix: from the third block on the picture has half its size inside the UNet."""

    def shrink(h: Tensor, options: dict[str, Any]) -> Tensor:
        return nn.functional.avg_pool2d(h, 2) if options["block"] == ("input", 3) else h

    def grow(h: Tensor, skip: Tensor, _options: Any) -> tuple[Tensor, Tensor]:
        return nn.functional.interpolate(h, skip.shape[-2:]), skip

    unet.set_model_patch(shrink, "input_block_patch")
    unet.set_model_patch(grow, "output_block_patch")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("site", [3, 5])
def test_a_region_follows_a_grid_that_was_resized(host: Forge, form: Form, site: int) -> None:
    put_shrinking(host.unet)
    given, streams = tiny.inputs("sd15", PAIR, (64, 64)), []
    handle = (
        host.block(site)
        .get_submodule("norm3")
        .register_forward_pre_hook(lambda _module, args: streams.append(args[0].clone()))
    )
    alone = Schedule(sites={i: float(i == site) for i in range(16)})
    for what in (None, injection(form, LEFT, schedule=alone)):
        run(host, what, given=given)
    handle.remove()
    side = 64 // (8 if site == 5 else 4)
    assert streams[0].shape[1] == side**2
    changed = (streams[1] != streams[0]).any(-1)[0].unflatten(0, (side, side))
    assert changed[:, : side // 2].all()
    assert not changed[:, side // 2 :].any()


# LoRA, odd layers, refusals.


def test_the_files_lora_is_added_and_taken_out(host: Forge) -> None:
    width = tiny.width_of("sd15", 4)
    down, up = (torch.randn(*shape, generator=torch.Generator().manual_seed(1)) for shape in ((2, width), (width, 2)))
    entries = tuple(
        (LowRank(8 + attention, name, down, up), 0.3) for attention in (0, 1) for name in ("to_q", "to_out")
    )
    bare = run(host, None)
    with_lora, without = (run(host, injection(lora=lora)) for lora in (entries, ()))
    assert largest(with_lora - without) > 1e-2
    assert torch.equal(run(host, None), bare)
    wrong = ((LowRank(8, "to_q", down[:, 1:], up), 1.0),)
    with pytest.raises(HostError, match="LoRA for layer 8"):
        run(host, injection(lora=wrong))


class Packed(nn.Module):
    """A linear layer as Forge's NF4 and GGUF: no ``in_features``, the weight's true shape is written elsewhere."""

    def __init__(self, linear: Any, quant_state: bool) -> None:
        super().__init__()
        weight = linear.weight.data

        packed: Any = nn.Parameter(weight.flatten() if quant_state else weight, requires_grad=False)
        if quant_state:
            packed.quant_state = SimpleNamespace(shape=weight.shape)
        self.weight, self.shape = packed, weight.shape

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.view(self.shape))


@pytest.mark.parametrize("quant_state", [True, False], ids=["NF4", "GGUF"])
@pytest.mark.parametrize("form", FORMS)
def test_layers_that_hide_their_width(form: Form, quant_state: bool) -> None:
    host = Forge("sd15")
    with torch.no_grad():
        expected = run(host, injection(form))
        for index in range(16):
            attn2 = host.block(index).get_submodule("attn2")
            for name in ("to_q", "to_k", "to_v"):
                setattr(attn2, name, Packed(attn2.get_submodule(name), quant_state))
        torch.testing.assert_close(run(host, injection(form)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [torch.bfloat16, FLOAT16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form: Form, kind: torch.dtype) -> None:
    host = Forge("sd15")
    with torch.no_grad():
        expected, bare = run(host, injection(form)), run(host, None)
        host.model.to(kind)
        out = run(host, injection(form), given=tiny.inputs("sd15", PAIR).to(kind))
    assert out.dtype == kind
    assert (out.float() - expected).norm() < 0.1 * (expected - bare).norm()


def test_other_models_are_refused() -> None:
    flux = nn.ModuleDict({"double_blocks": nn.ModuleList([nn.Linear(2, 2)])})
    with (
        pytest.raises(HostError, match=r"0 cross-attention blocks.*Flux and refiners are not supported"),
        forge.attach(Patcher(Model(flux)), injection(), sampler_rows(1)),
    ):
        pass
    with (
        pytest.raises(HostError, match=r"made for SD1.5, the loaded model is SDXL"),
        forge.attach(Forge("sdxl").unet, injection(), sampler_rows(1)),
    ):
        pass


def test_an_idle_injection_does_not_even_look_at_the_model() -> None:
    with forge.attach(object(), Injection(()), sampler_rows(1)) as attached:
        assert attached.bypass.calls == 0
