"""What only AUTOMATIC1111's UNets bring: names, refusals, the sampler's calls, other patches, precisions, reloading."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, LowRank
from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.types import Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import ldm as host
from dp_adapter.hosts.attach.sites import Base, site_names
from dp_adapter.hosts.rows.a1111_rows import CfgRows
from tests import tiny
from tests.hosts import ldm_unet

PAIR = (Row("cond"), Row("uncond"))
SOME = tiny.box(0.25, 0.125, 0.75, 0.625)
ONE: list[list[tuple[int, float]]] = [[(0, 1.0)]]


@lru_cache
def shared(base: Base = "sd15", seed: int = 0) -> nn.Module:
    """For tests that leave it alone."""
    return ldm_unet.of(tiny.unet(base, seed), groups=8)


def fresh(base: Base = "sd15", seed: int = 0) -> nn.Module:
    return copy.deepcopy(shared(base, seed))


@lru_cache
def adapter(base: Base) -> Adapter:
    return tiny.adapter(base)


def injection(base: Base = "sd15", **changes: Any) -> Injection:
    identity = Identity(adapter(base), tiny.tokens(), mask=SOME)
    return replace(Injection((identity,)), **changes)


def gated() -> Injection:
    return Injection((Identity(tiny.gated_adapter(), tiny.tokens(), mask=SOME, mode="gated"),))


WAYS: dict[str, Callable[[], Injection]] = {
    "folded": injection,
    "half": lambda: injection(form="half"),
    "plain": lambda: injection(form="plain"),
    "strict": lambda: injection(text=TextPathway(strict=True)),
    "gated": gated,
}


def run(model: nn.Module, what: Injection, rows: Sequence[Row] | CfgRows = PAIR, base: Base = "sd15") -> Tensor:
    with torch.no_grad(), host.attach(model, what, rows):
        return ldm_unet.call(model, tiny.inputs(base, PAIR))


def bare(model: nn.Module, base: Base = "sd15") -> Tensor:
    with torch.no_grad():
        return ldm_unet.call(model, tiny.inputs(base, PAIR))


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


# Names and refusals.


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_sites_know_their_widths(base: Base) -> None:
    model = shared(base)
    assert host.base_of(model) == base
    for site, name in zip(host.sites_of(model), site_names(base), strict=True):
        attn2: Any = model.get_submodule(name.ldm + ".attn2")
        assert (site.index, site.level, site.halvings) == (name.index, name.level, name.halvings)
        assert (site.channels, site.heads) == (attn2.to_q.in_features, attn2.heads)


def test_stable_diffusion_2_is_refused() -> None:
    model: Any = fresh()
    for path in {name.ldm.split(".transformer_blocks")[0] for name in site_names("sd15")}:
        transformer: Any = model.get_submodule(path)
        width = transformer.in_channels
        transformer.proj_in, transformer.proj_out = nn.Linear(width, width), nn.Linear(width, width)
    with pytest.raises(HostError, match="Stable Diffusion 2"), host.attach(model, injection(), PAIR):
        pass


def test_distilled_layouts_are_refused() -> None:
    """SSD-1B is SDXL without its middle and with fewer blocks (sd_hijack.py:191-203)."""
    model: Any = fresh("sdxl")
    del model.middle_block[1]
    with pytest.raises(HostError, match="60 cross-attention blocks"), host.attach(model, injection("sdxl"), PAIR):
        pass


def test_an_adapter_for_another_base_is_refused() -> None:
    with pytest.raises(HostError, match="SDXL"), host.attach(shared(), injection("sdxl"), PAIR):
        pass


def test_more_input_channels() -> None:
    """Inpainting models get mask and picture as further channels of the latents."""
    model: Any = fresh()
    first = model.input_blocks[0][0]
    first.weight = nn.Parameter(F.pad(first.weight, (0, 0, 0, 0, 0, 5)), requires_grad=False)
    given = tiny.inputs("sd15", PAIR)
    padded = replace(given, latents=F.pad(given.latents, (0, 0, 0, 0, 0, 5), value=3.0))
    with torch.no_grad(), host.attach(model, injection(), PAIR):
        out = ldm_unet.call(model, padded)
    torch.testing.assert_close(out, run(shared(), injection()), atol=1e-5, rtol=0)


# The sampler's calls.


def announced(given: tiny.Inputs) -> CfgRows:
    rows = CfgRows()
    rows.announce(ONE, given.latents, given.context[:1], given.context[1:])
    return rows


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("parts", [[[0, 1]], [[0], [1]], [[0]]], ids=["joined", "split", "no uncond"])
def test_calls_of_one_step(name: str, parts: list[list[int]]) -> None:
    model, given, what = shared(), tiny.inputs("sd15", PAIR), WAYS[name]()
    with torch.no_grad(), host.attach(model, what, announced(given)):
        out = torch.cat([ldm_unet.call(model, given.rows(part)) for part in parts])
    torch.testing.assert_close(out, run(model, what)[: len(out)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WAYS)
def test_a_call_outside_of_a_step_is_left_alone(name: str) -> None:
    given, rows = tiny.inputs("sd15", PAIR), CfgRows()
    assert torch.equal(run(shared(), WAYS[name](), rows), bare(shared()))
    rows.announce(ONE, given.latents, given.context[:1], given.context[1:])
    torch.testing.assert_close(run(shared(), WAYS[name](), rows), run(shared(), WAYS[name]()), atol=0, rtol=0)


def test_blocks_called_without_their_unet_are_left_alone() -> None:
    """The step ends with the UNet's call, so nothing of it reaches whoever calls parts of the model afterwards."""
    model, given = shared(), tiny.inputs("sd15", PAIR)
    block = model.get_submodule(site_names("sd15")[0].ldm)
    x = torch.randn(2, 256, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = block(x, context=given.context)
        for what in WAYS.values():
            with host.attach(model, what(), PAIR):
                ldm_unet.call(model, given)
                assert torch.equal(block(x, context=given.context), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_tiles(masked: bool) -> None:
    """Without a region a tile is like a picture; a region needs a tile that is a cut of the step's latents."""
    model, whole = shared(), tiny.inputs("sd15", PAIR)
    tile = tiny.inputs("sd15", PAIR, (8, 8))
    what = Injection((Identity(adapter("sd15"), tiny.tokens(), mask=SOME if masked else None),))
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(host.attach(model, what, announced(whole)))
        if masked:
            with pytest.raises(HostError, match="tiles"):
                ldm_unet.call(model, tile.rows([0, 1, 0, 1]))
            return
        out = ldm_unet.call(model, tile.rows([0, 1, 0, 1]))
    with torch.no_grad(), host.attach(model, what, PAIR * 2):
        torch.testing.assert_close(out, ldm_unet.call(model, tile.rows([0, 1, 0, 1])), atol=0, rtol=0)


def test_timesteps_may_be_fractional_and_half() -> None:
    """k-diffusion's lie between the trained ones; with a UNet in half precision they are half too."""
    model, given = shared(), tiny.inputs("sd15", PAIR)
    for value, kind, span in (
        (499.5, torch.float32, (0.5, 0.5)),
        (999, torch.float16, (0, 0)),
        (0, torch.int64, (1, 1)),
    ):
        timesteps = torch.tensor([value, value]).to(kind)
        with torch.no_grad():
            expected = model(given.latents, timesteps, given.context)
            for schedule, acts in ((Schedule(*span), True), (Schedule(0.51, 0.99), False)):
                with host.attach(model, injection(schedule=schedule), PAIR):
                    assert torch.equal(model(given.latents, timesteps, given.context), expected) != acts


# Others at work on the same UNet.


def other_attention(self: Any, x: Tensor, context: Tensor | None = None, **_options: Any) -> Tensor:
    """An attention optimisation: a forward that calls the projections as modules."""
    context = x if context is None else context
    q, k, v = (
        t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        for t in (self.to_q(x), self.to_k(context), self.to_v(context))
    )
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    projection, dropout = self.to_out
    return dropout(projection(out))


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("where", ["class", "instances"])
def test_an_attention_put_in_while_attached(name: str, where: str) -> None:
    """Optimisations set the class' forward, ControlNet's IP-Adapter those of single layers."""
    model, given = fresh(), tiny.inputs("sd15", PAIR)
    expected, what = run(model, WAYS[name]()), WAYS[name]()
    layers: list[Any] = [m for m in model.modules() if type(m).__name__ == "CrossAttention"]
    assert len(layers) == 32
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), host.attach(model, what, PAIR):
        if where == "class":
            patch.setattr(type(layers[0]), "forward", other_attention)
        else:
            for layer in layers:
                layer.forward = other_attention.__get__(layer)
        out = ldm_unet.call(model, given)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@contextmanager
def token_merging(model: nn.Module, ratio: float) -> Generator[None]:
    """As sd_models.py:1024-1032 puts it in."""
    tomesd: Any = pytest.importorskip("tomesd")
    wrapper = nn.Module()
    wrapper.model = nn.Module()
    wrapper.model.diffusion_model = model
    settings = {"use_rand": False, "merge_attn": True, "merge_crossattn": False, "merge_mlp": False}
    tomesd.apply_patch(wrapper, ratio=ratio, **settings)
    yield
    tomesd.remove_patch(wrapper)


@pytest.mark.parametrize("first", ["merging", "adapter"])
@pytest.mark.parametrize("name", WAYS)
def test_token_merging(name: str, first: str) -> None:
    model, given, what = fresh(), tiny.inputs("sd15", PAIR), WAYS[name]()
    plain = bare(model)
    with torch.no_grad(), ExitStack() as stack:
        attached = host.attach(model, what, PAIR)
        merging = token_merging(model, 0.5)
        for context in (attached, merging) if first == "adapter" else (merging, attached):
            stack.enter_context(cast(Any, context))
        out = ldm_unet.call(model, given)
    with token_merging(model, 0.5):
        merged = bare(model)
    assert largest(merged - plain) > 1e-3
    assert largest(out - merged) > 1e-2
    if name == "strict":
        inside = F.max_pool2d(SOME[None], 8).bool().expand_as(out)
        assert largest((out - merged)[~inside]) < 5e-6


def test_a_smaller_picture_inside_the_model_is_refused_with_a_region() -> None:
    """High-resolution fixes shrink the features of some blocks."""
    model, given = fresh(), tiny.inputs("sd15", PAIR)
    blocks: Any = model.get_submodule("input_blocks")

    def shrink(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return F.avg_pool2d(output, 2)

    blocks[3].register_forward_hook(shrink)
    for what in WAYS.values():
        with torch.no_grad(), pytest.raises(HostError, match="positions"), host.attach(model, what(), PAIR):
            ldm_unet.call(model, given)
    everywhere = Injection((Identity(adapter("sd15"), tiny.tokens()),))
    with torch.no_grad(), host.attach(model, everywhere, PAIR):
        assert ldm_unet.call(model, given).isfinite().all()


def test_the_weights_of_the_model_are_never_replaced() -> None:
    """The WebUI's LoRA writes to them during a call and keeps copies, so a LoRA in the adapter works beside them."""
    model, generator = fresh(), torch.Generator().manual_seed(0)
    width = tiny.width_of("sd15", 0)
    down, up = torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator)
    lora = ((LowRank(1, "to_q", down, up), 0.5), (LowRank(0, "to_out", down, up), 0.5))
    before = {name: (id(weight), weight.clone()) for name, weight in model.named_parameters()}
    without = run(model, injection())
    with torch.no_grad(), host.attach(model, injection(lora=lora), PAIR):
        out = ldm_unet.call(model, tiny.inputs("sd15", PAIR))
        for name, weight in model.named_parameters():
            assert id(weight) == before[name][0]
            assert torch.equal(weight, before[name][1])
    assert largest(out - without) > 1e-3
    merged = fresh()
    block: Any = merged.get_submodule(site_names("sd15")[0].ldm)
    block.attn2.to_q.weight += 0.5 * up @ down
    block.attn1.to_out[0].weight += 0.5 * up @ down
    torch.testing.assert_close(out, run(merged, injection()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["folded", "half", "plain"])
def test_another_checkpoint_that_came_into_the_unet_is_used(name: str) -> None:
    model, other, given = fresh(), fresh(seed=5), tiny.inputs("sd15", PAIR)
    expected = run(other, WAYS[name]())
    with torch.no_grad(), host.attach(model, WAYS[name](), PAIR):
        ldm_unet.call(model, given)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(ldm_unet.call(model, given), expected, atol=1e-6, rtol=0)


def test_nothing_to_do_gives_no_attachment() -> None:
    with host.attach(nn.Identity(), Injection(()), PAIR) as attachment:
        assert attachment is None


# Precisions.


def rounding_of(effect: Tensor, reference: Tensor) -> float:
    return ((effect - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("name", WAYS)
def test_autocast(name: str) -> None:
    """The WebUI samples under autocast: normalised states are float32 there, projections half."""
    model, what = shared(), WAYS[name]()
    reference = run(model, what) - bare(model)
    with torch.autocast("cpu", torch.bfloat16):
        effect = (run(model, what) - bare(model)).float()
    assert rounding_of(effect, reference) < 0.15
    assert rounding_of(torch.zeros_like(reference), reference) == 1


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16])
def test_weights_stored_in_fp8_and_cast_by_linear_itself(name: str, target: torch.dtype) -> None:
    """devices.py:152-184: every layer casts its arguments, its weights, and its result back to float32."""
    stored, rounded, what = fresh(), fresh(), WAYS[name]()
    for module in (m for m in stored.modules() if isinstance(m, nn.Linear)):
        module.to(torch.float8_e4m3fn)
    rounded.load_state_dict({key: value.float() for key, value in stored.state_dict().items()})
    reference = run(rounded, what) - bare(rounded)

    def cast_forward(self: nn.Linear, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.to(target) for p in (self.weight, cast("Tensor | None", self.bias)))
        assert weight is not None
        return F.linear(x.to(target), weight, bias).float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", cast_forward)
        effect = run(stored, what) - bare(stored)
    assert rounding_of(effect, reference) < (1e-4 if target == torch.float32 else 0.15)
