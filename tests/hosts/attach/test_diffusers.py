"""What only diffusers' UNets bring: calling conventions, precisions, PEFT, attention processors, refusals, training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, SlicedAttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, LowRank, SiteAdapter
from dp_adapter.core.injection import Form, Identity, Injection, TextPathway
from dp_adapter.core.types import Grid, Row, Tokens
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import diffusers as host
from dp_adapter.hosts.attach.sites import Base
from tests import tiny
from tests.hosts.protocol import host_of, same_state, state_of
from tests.precision import FLOAT16

PAIR = (Row("uncond"), Row("cond"))
FORMS: list[Form] = ["folded", "half", "plain"]
SOME = tiny.box(0.25, 0.125, 0.75, 0.625)


@lru_cache
def adapter(base: Base) -> Adapter:
    return tiny.adapter(base)


def injection(base: Base = "sd15", **changes: Any) -> Injection:
    return replace(Injection((Identity(adapter(base), tiny.tokens(), mask=SOME),)), **changes)


def model_of(base: Base) -> nn.Module:
    return host_of("diffusers", base).model


def run(model: nn.Module, what: Injection, given: tiny.Inputs | None = None) -> Tensor:
    with torch.no_grad(), host.attach(model, what, PAIR):
        return tiny.call(model, tiny.inputs(host.base_of(model), PAIR) if given is None else given)


# Names.


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_sites_are_the_models_own_in_the_order_of_its_processors(base: Base) -> None:
    """IP-Adapter numbers its layers by ``unet.attn_processors``, attn1 even and attn2 odd."""
    model = cast(UNet2DConditionModel, model_of(base))
    processors = [name.removesuffix(".processor") for name in model.attn_processors]
    names = [f"{site.name}.attn{i}" for site in host.sites_of(model) for i in (1, 2)]
    assert names == processors


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
@pytest.mark.parametrize("size", [(16, 16), (17, 23)])
def test_sites_know_their_grid_and_width(base: Base, size: tuple[int, int]) -> None:
    model, given = model_of(base), tiny.inputs(base, PAIR, size)
    shapes: dict[str, torch.Size] = {}
    sites = host.sites_of(model)

    def record(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            shapes[name] = args[0].shape

        return hook

    with torch.no_grad(), ExitStack() as stack:
        for site in sites:
            attn2 = model.get_submodule(f"{site.name}.attn2")
            stack.callback(attn2.register_forward_pre_hook(record(site.name)).remove)
        tiny.call(model, given)
    for site in sites:
        assert shapes[site.name] == (2, len(Grid(*size).halved(site.halvings)), site.channels)
        assert site.heads == cast(Attention, model.get_submodule(f"{site.name}.attn2")).heads


def test_pipelines_put_the_unconditional_half_first() -> None:
    class Guided:
        do_classifier_free_guidance = True

    rows = host.pipeline_rows(Guided())
    assert rows(4) == [Row("uncond", 0), Row("uncond", 1), Row("cond", 0), Row("cond", 1)]
    Guided.do_classifier_free_guidance = False
    assert rows(2) == [Row("cond", 0), Row("cond", 1)]


# Calling conventions.


@pytest.mark.parametrize(
    ("timestep", "strict"),
    [
        (400, False),
        (torch.tensor(400), True),
        (torch.tensor([400]), True),
        (torch.tensor([400, 400]), True),
        (torch.tensor(400.0), False),
    ],
    ids=["int", "0-d", "1-d", "per row", "float 0-d"],
)
def test_every_way_of_saying_the_timestep(timestep: float | Tensor, strict: bool) -> None:
    model, given = model_of("sd15"), tiny.inputs("sd15", PAIR)
    what = injection(text=TextPathway(strict=strict))
    with torch.no_grad(), host.attach(model, what, PAIR):
        out = tiny.call(model, given, timestep)
    torch.testing.assert_close(out, run(model, what), atol=1e-6, rtol=0)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_keywords_and_tuples(base: Base, strict: bool) -> None:
    model, given = model_of(base), tiny.inputs(base, PAIR)
    what = injection(base, text=TextPathway(strict=strict))
    extra = {"text_embeds": given.text_embeds, "time_ids": given.time_ids}
    with torch.no_grad(), host.attach(model, what, lambda count: PAIR[:count]):
        (out,) = model(
            sample=given.latents,
            timestep=400,
            encoder_hidden_states=given.context,
            added_cond_kwargs=extra,
            cross_attention_kwargs={},
            return_dict=False,
        )
    assert torch.equal(out, run(model, what, given))


def test_strict_twins_get_controlnet_residuals_and_masks_too() -> None:
    """All per-row arguments must be doubled with the rows, or the twins would see another picture."""
    model, given = cast(UNet2DConditionModel, model_of("sd15")), tiny.inputs("sd15", PAIR)
    generator = torch.Generator().manual_seed(7)
    c = tiny.CHANNELS["sd15"]
    shapes = [(c[0], 16)] * 3 + [(c[0], 8), (c[1], 8), (c[1], 8), (c[1], 4), (c[2], 4), (c[2], 4), (c[2], 2)]
    shapes += [(c[3], 2)] * 2
    extra: dict[str, Any] = {
        "down_block_additional_residuals": tuple(
            torch.randn(2, width, side, side, generator=generator) for width, side in shapes
        ),
        "mid_block_additional_residual": torch.randn(2, c[3], 2, 2, generator=generator),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
    }
    with torch.no_grad():
        base = model(given.latents, 400, given.context, **extra).sample
        with host.attach(model, injection(text=TextPathway(strict=True)), PAIR):
            out = model(given.latents, 400, given.context, **extra).sample
    inside = torch.nn.functional.max_pool2d(SOME[None], 8).bool().expand_as(out)
    assert (out - base)[~inside].abs().max() < 5e-6
    assert (out - base)[inside].abs().max() > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_inference_mode(form: Form) -> None:
    model, given = model_of("sd15"), tiny.inputs("sd15", PAIR)
    with torch.inference_mode(), host.attach(model, injection(form=form), PAIR):
        out = tiny.call(model, given)
    assert torch.equal(out.clone(), run(model, injection(form=form)))


# Precisions.


@pytest.mark.parametrize(("form", "strict"), [("folded", False), ("plain", True)])
@pytest.mark.parametrize("dtype", [FLOAT16, torch.bfloat16], ids=str)
def test_half_precision_models(dtype: torch.dtype, form: Form, strict: bool) -> None:
    what = injection(form=form, text=TextPathway(strict=strict))
    error, own = half_precision_errors(what, dtype)
    assert error < 2 * own


def of_type(dtype: torch.dtype) -> nn.Module:
    model = cast(nn.Module, tiny.unet("sd15"))
    return model.to(dtype)


def half_precision_errors(what: Injection, dtype: torch.dtype) -> tuple[float, float]:
    """Mean error of the patched model in a precision, and that of the bare model."""
    model, given = of_type(dtype), tiny.inputs("sd15", PAIR)
    errors: list[float] = []
    for one in (what, Injection(())):
        out = run(model, one, given.to(dtype))
        assert out.dtype == dtype
        errors.append((out.float() - run(model_of("sd15"), one, given)).abs().mean().item())
    return errors[0], errors[1]


@pytest.mark.parametrize("dtype", [FLOAT16, torch.bfloat16], ids=str)
def test_half_precision_trained_pathways(dtype: torch.dtype) -> None:
    both = tiny.adapter("sd15", text=True, blending=True)
    error, own = half_precision_errors(Injection((Identity(both, tiny.tokens(), mask=SOME),)), dtype)
    assert error < 2 * own
    assert all(parameter.dtype == torch.float32 for parameter in both.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_autocast(form: Form) -> None:
    exact = run(model_of("sd15"), injection(form=form))
    with torch.autocast("cpu", torch.bfloat16):
        out = run(model_of("sd15"), injection(form=form))
    _, own = half_precision_errors(Injection(()), torch.bfloat16)
    assert (out.float() - exact).abs().mean() < 2 * own


# Other people's changes to the model.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(1)], ids=["classic", "sliced"])
def test_other_attention_processors(processor: Any, form: Form) -> None:
    model = tiny.unet("sd15")
    model.set_attn_processor(processor)
    before = state_of(model)
    out = run(model, injection(form=form))
    assert same_state(before, state_of(model))
    torch.testing.assert_close(out, run(model_of("sd15"), injection(form=form)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_processor_of_someone_else_is_called(form: Form) -> None:
    class Louder(AttnProcessor):
        def __call__(self, attn: Attention, *args: Any, **kwargs: Any) -> Tensor:
            return 1.5 * super().__call__(attn, *args, **kwargs)

    model, given = tiny.unet("sd15"), tiny.inputs("sd15", PAIR)
    model.set_attn_processor(Louder())
    louder = tiny.call(model, given)
    idle = replace(injection(form=form).identities[0], weight=1e-30)
    out = run(model, Injection((idle,), form=form))
    assert (louder - tiny.call(model_of("sd15"), given)).abs().max() > 1e-2
    torch.testing.assert_close(out, louder, atol=1e-5, rtol=0)


def peft_model() -> UNet2DConditionModel:
    peft = pytest.importorskip("peft")
    model = tiny.unet("sd15")
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model.add_adapter(config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("form", FORMS)
def test_a_peft_lora_on_the_model_is_part_of_the_identity_branch(form: Form) -> None:
    """The expected output is that of a plain model with the LoRA merged into its weights."""
    model = peft_model()
    merged = tiny.unet("sd15")
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            up, down = (module.get_parameter(f"lora_{part}.default.weight") for part in "BA")
            merged.get_parameter(f"{path}.weight").data += cast(Any, module).scaling["default"] * up @ down
    expected = run(merged, injection(form=form))
    assert (expected - run(model_of("sd15"), injection(form=form))).abs().max() > 1e-2
    torch.testing.assert_close(run(model, injection(form=form)), expected, atol=2e-5, rtol=0)


def file_lora(rank: int = 2) -> tuple[tuple[LowRank, float], ...]:
    layers = tiny.lora_layers("sd15", rank)
    names = sorted({key.rsplit("_lora.", 1)[0] for key in layers})
    return tuple(
        (
            LowRank(
                int(name.split(".")[0]),
                name.split(".")[1],
                layers[f"{name}_lora.down.weight"],
                layers[f"{name}_lora.up.weight"],
            ),
            0.5,
        )
        for name in names
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_files_lora_on_top_of_a_peft_lora(form: Form) -> None:
    """Where a layer is not a plain Linear its LoRA is added to the output instead of merged: the same numbers."""
    torch.manual_seed(12)
    lora = file_lora()
    model = peft_model()
    model.disable_adapters()
    hooked = run(model, injection(form=form, lora=lora))
    merged = run(model_of("sd15"), injection(form=form, lora=lora))
    assert (merged - run(model_of("sd15"), injection(form=form))).abs().max() > 1e-2
    torch.testing.assert_close(hooked, merged, atol=2e-5, rtol=0)


@pytest.mark.parametrize("stacked", [False, True], ids=["plain layers", "peft layers"])
def test_lora_leaves_and_returns(stacked: bool) -> None:
    torch.manual_seed(12)
    model = peft_model() if stacked else tiny.unet("sd15")
    given = tiny.inputs("sd15", PAIR)
    before, out = state_of(model), tiny.call(model, given)
    run(model, injection(lora=file_lora()))
    assert same_state(before, state_of(model))
    assert torch.equal(tiny.call(model, given), out)


@pytest.mark.parametrize("stacked", [False, True], ids=["plain layers", "peft layers"])
def test_a_lora_of_another_width_is_refused_before_the_first_step(stacked: bool) -> None:
    model = peft_model() if stacked else tiny.unet("sd15")
    before = state_of(model)
    lora = (*file_lora(), (LowRank(31, "to_q", torch.zeros(2, 1280), torch.zeros(1280, 2)), 1.0))
    with (
        pytest.raises(HostError, match=r"layer 31 \(to_q\) is 1280x1280"),
        host.attach(model, injection(lora=lora), PAIR),
    ):
        pytest.fail("the with was entered")
    assert same_state(before, state_of(model))


# Refusals, before anything is patched.


def refused(model: nn.Module, what: Injection, words: str) -> None:
    before = state_of(model)
    with pytest.raises(HostError, match=words), host.attach(model, what, PAIR):
        pytest.fail("the with was entered")
    assert same_state(before, state_of(model))


def test_an_adapter_of_the_other_base_is_refused() -> None:
    refused(model_of("sd15"), injection("sdxl"), "made for SDXL, the loaded model is SD1.5")
    refused(model_of("sdxl"), injection("sd15"), "made for SD1.5, the loaded model is SDXL")


def test_an_adapter_in_execution_order_is_refused() -> None:
    """Down, middle, up instead of down, up, middle fits the count but not the widths."""
    right = adapter("sd15")
    shuffled = [right.site(i) for i in [*range(6), 15, *range(6, 15)]]
    wrong = Adapter(right.projection, shuffled)
    refused(model_of("sd15"), Injection((Identity(wrong, tiny.tokens()),)), "Layer 13 of the adapter is 48x48")


def test_another_architecture_is_refused() -> None:
    model = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=tiny.CONTEXT,
        norm_num_groups=8,
        attention_head_dim=4,
    )
    refused(model, injection(), "unknown layout")


def test_a_text_context_of_another_width_is_refused() -> None:
    """SD2 has SD1.5's layout but a wider text encoder."""
    sites = [SiteAdapter(tiny.CONTEXT + 16, tiny.width_of("sd15", i)) for i in range(16)]
    wrong = Identity(Adapter(adapter("sd15").projection, sites), Tokens(torch.zeros(4, 64), torch.zeros(4, 64)))
    refused(model_of("sd15"), Injection((wrong,)), "Layer 1 of the adapter is 16x64")


def test_fused_projections_are_refused() -> None:
    model = tiny.unet("sd15")
    for module in model.modules():
        if isinstance(module, Attention):
            module.fuse_projections()
    refused(model, injection(), "fused")


# Training.


def trainable(text: bool, blending: bool, seed: int = 3) -> Adapter:
    return tiny.adapter("sd15", seed, text=text, blending=blending).train().requires_grad_(True)


@pytest.mark.parametrize(("text", "blending"), [(False, False), (True, False), (False, True), (True, True)])
def test_gradients_reach_every_part_of_the_adapter(text: bool, blending: bool) -> None:
    """And steps of an optimiser follow them: the loss falls."""
    model, given, part = model_of("sd15"), tiny.inputs("sd15", PAIR), trainable(text, blending)
    soft = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    face = torch.randn(1, tiny.FACE, generator=torch.Generator().manual_seed(1))
    target = torch.zeros_like(given.latents)
    optimiser = torch.optim.SGD(part.parameters(), lr=0.05)
    losses: list[float] = []
    for _ in range(4):
        cond, uncond = (part.projection(x)[0] for x in (face, torch.zeros_like(face)))
        identity = Identity(part, replace(tiny.tokens(), cond=cond, uncond=uncond), mask=soft)
        with host.attach(model, Injection((identity,), form="plain"), PAIR):
            loss = (tiny.call(model, given) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
        losses.append(loss.item())
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any() or name.endswith("conv.bias"), name
        optimiser.step()
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_gradient_is_that_of_finite_differences() -> None:
    model, given, part = of_type(torch.float64), tiny.inputs("sd15", PAIR).to(torch.float64), trainable(True, True)
    part = part.double()
    tokens = tiny.tokens()
    weight = part.site(7).get_parameter("to_v.weight")

    def loss() -> Tensor:
        with host.attach(model, Injection((Identity(part, tokens, mask=SOME),), form="plain"), PAIR):
            return tiny.call(model, given).square().mean()

    loss().backward()
    assert weight.grad is not None
    step = 1e-4
    with torch.no_grad():
        weight[3, 5] += step
        up = loss()
        weight[3, 5] -= 2 * step
        down = loss()
    torch.testing.assert_close((up - down) / (2 * step), weight.grad[3, 5], rtol=1e-2, atol=1e-9, check_dtype=False)
