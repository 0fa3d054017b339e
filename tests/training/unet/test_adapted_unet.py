"""The adapted UNet: the same numbers as the extension makes, and gradients in every weight that is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.injection import Identity, Injection
from dp_adapter.core.regions.region_masks import on_grid
from dp_adapter.core.types import Grid, Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import diffusers as host
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.training.unet.adapted_unet import AdaptedUNet, Conditions, Mode, progress_of
from dp_adapter.training.unet.trained_sites import identity_share
from tests import tiny

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as UNet

SIZE = (10, 12)  # halves to 5 x 6, 3 x 3, 2 x 2: masks and grids must round up alike
TIMESTEPS = torch.tensor([400, 90])
ROWS = [Row("cond", 0), Row("cond", 1)]
EVERYTHING = frozenset({"fair", "localisation", "attention", "features"})

KINDS: dict[str, tuple[Callable[[], Adapter], Mode]] = {
    "plain": (lambda: tiny.adapter("sd15"), "add"),
    "tca": (lambda: tiny.adapter("sd15", text=True), "add"),
    "ffb": (lambda: tiny.adapter("sd15", blending=True), "add"),
    "both": (lambda: tiny.adapter("sd15", text=True, blending=True), "add"),
    "gated": (tiny.gated_adapter, "gated"),
}


@pytest.fixture(scope="module")
def model() -> UNet:
    return tiny.unet("sd15")


Adapt = Callable[..., AdaptedUNet]


@pytest.fixture
def adapt(model: UNet) -> Iterator[Adapt]:
    """Adapts the one UNet, and releases it in the end."""
    made: list[AdaptedUNet] = []

    def adapted(kind: str) -> AdaptedUNet:
        adapter, mode = KINDS[kind]
        made.append(AdaptedUNet(model, adapter().requires_grad_(True), mode=mode))
        return made[-1]

    yield adapted
    for one in made:
        one.release()


def picture_masks() -> Tensor:
    """[2, H, W] in picture space: a soft-edged and a hard one, in different places."""
    soft = 0.5 * (tiny.box(0, 0.2, 0.6, 0.9, SIZE) + tiny.box(0.2, 0.2, 0.4, 0.7, SIZE))
    return torch.cat([soft, tiny.box(0.5, 0.4, 1, 1, SIZE)])


def conditions(base: Base = "sd15", **changes: Tensor | None) -> Conditions:
    """Two rows with different texts, people and masks."""
    tokens = torch.stack([tiny.tokens(seed=2).cond, tiny.tokens(seed=3).cond])
    mask = on_grid(picture_masks(), Grid(*SIZE), 0)[:, None]
    return replace(Conditions(tiny.inputs(base, ROWS, SIZE).context, tokens, mask), **changes)


def predict(adapted: AdaptedUNet, given: Conditions, **options: object) -> Tensor:
    return adapted(tiny.inputs("sd15", ROWS, SIZE).latents, TIMESTEPS, given, **options).noise


def as_the_extension(model: UNet, adapter: Adapter, mode: Mode, base: Base) -> Tensor:
    """Row by row through ``hosts.attach.diffusers.attach``."""
    given, rows = tiny.inputs(base, ROWS, SIZE), list[Tensor]()
    for row, timestep in enumerate(TIMESTEPS.tolist()):
        identity = Identity(adapter, tiny.tokens(seed=2 + row), mask=picture_masks()[row : row + 1], mode=mode)
        with host.attach(model, Injection((identity,)), ROWS[:1]), torch.no_grad():
            rows.append(tiny.call(model, given.rows([row]), timestep))
    return torch.cat(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_computes_what_the_extension_does(model: UNet, adapt: Adapt, kind: str) -> None:
    adapted = adapt(kind)
    with torch.no_grad():
        mine = predict(adapted, conditions())
    theirs = as_the_extension(model, adapted.adapter, adapted.mode, "sd15")
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    base = adapted.predict_base(tiny.inputs("sd15", ROWS, SIZE).latents, TIMESTEPS, conditions().text)
    assert (mine - base).abs().max() > 0.05
    with torch.enable_grad():  # the form whose backward is fast
        torch.testing.assert_close(predict(adapted, conditions()).detach(), theirs, atol=1e-5, rtol=1e-5)


def test_computes_what_the_extension_does_in_sdxl() -> None:
    model, adapter = tiny.unet("sdxl"), tiny.adapter("sdxl", text=True, blending=True)
    adapted = AdaptedUNet(model, adapter)
    given = tiny.inputs("sdxl", ROWS, SIZE)
    added = {"text_embeds": given.text_embeds, "time_ids": given.time_ids}
    with torch.no_grad():
        mine = adapted(given.latents, TIMESTEPS, conditions("sdxl"), record=EVERYTHING, added_cond_kwargs=added)
    torch.testing.assert_close(mine.noise, as_the_extension(model, adapter, "add", "sdxl"), atol=1e-5, rtol=1e-5)
    assert len(mine.features) == 30 and mine.attention.shape == (2, 1, 5, 6)


def test_without_identity_it_is_the_base_model(model: UNet, adapt: Adapt) -> None:
    given = tiny.inputs("sd15", ROWS, SIZE)
    with torch.no_grad():
        untouched = model(given.latents, TIMESTEPS, given.context).sample
        adapted = adapt("both")
        assert torch.equal(adapted.predict_base(given.latents, TIMESTEPS, given.context), untouched)
        for alike in (
            predict(adapted, conditions(tokens=None)),
            predict(adapted, conditions(), identity=False),
            predict(adapted, conditions(mask=torch.zeros(2, 1, *SIZE))),
        ):
            torch.testing.assert_close(alike, untouched, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["both", "gated"])
def test_where_the_text_is_off_it_says_nothing(adapt: Adapt, kind: str) -> None:
    adapted, given = adapt(kind), conditions(text_on=torch.tensor([0.0, 1.0]))
    with torch.no_grad():
        one, other = predict(adapted, given), predict(adapted, replace(given, text=given.text.roll(1, 1) * 2))
        on = predict(adapted, conditions())
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[1], on[1])
    assert (one[0] - on[0]).abs().max() > 0.01 and (one[1] - other[1]).abs().max() > 0.01


def gradients(adapted: AdaptedUNet) -> dict[str, Tensor]:
    """Of everything that is trained, for a loss in which all of it takes part."""
    adapted.zero_grad()
    features = torch.randn(2, tiny.FACE, generator=torch.Generator().manual_seed(0))
    record = frozenset({"fair"}) if adapted.mode == "gated" else EVERYTHING
    given = conditions(tokens=adapted.make_tokens(features))
    made = adapted(tiny.inputs("sd15", ROWS, SIZE).latents, TIMESTEPS, given, record=record)
    loss = made.noise.float().square().mean() + made.fair
    if adapted.mode == "add":
        loss = loss + made.localisation + made.attention.mean() + sum(x.float().square().mean() for x in made.features)
    loss.backward()
    return {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", ["both", "gated"])
def test_gradients_reach_everything_trained_and_nothing_else(model: UNet, adapt: Adapt, kind: str) -> None:
    adapted = adapt(kind)
    found = gradients(adapted)
    assert set(found) == {f"adapter.{name}" for name, _ in adapted.adapter.named_parameters()}
    idle = {name for name, gradient in found.items() if not gradient.abs().max() > 0}
    # The middle's grid has few cells, so that a tap of a convolution may see no input; no tensor is idle for that.
    assert idle == set()

    model.enable_gradient_checkpointing()
    try:
        again = gradients(adapted)
    finally:
        model.disable_gradient_checkpointing()
    for name, gradient in found.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["both", "gated"])
def test_mixed_precision(adapt: Adapt, kind: str) -> None:
    adapted = adapt(kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(adapted)
        half = predict(adapted, conditions())
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found.values())
    with torch.no_grad():
        full = predict(adapted, conditions())
    assert (half - full).abs().max() < 0.1 * full.abs().max()


def test_two_forwards_before_one_backward_keep_their_conditions(model: UNet, adapt: Adapt) -> None:
    adapted = adapt("both")
    given = conditions()
    assert given.tokens is not None
    swapped = replace(given, tokens=given.tokens.flip(0))
    site = adapted.adapter.site(5)
    assert isinstance(site, SiteAdapter)
    weight = site.to_k.weight
    apart = [torch.autograd.grad(predict(adapted, one).square().sum(), weight)[0] for one in (given, swapped)]
    model.enable_gradient_checkpointing()
    try:
        both = predict(adapted, given).square().sum() + predict(adapted, swapped).square().sum()
        together = torch.autograd.grad(both, weight)[0]
    finally:
        model.disable_gradient_checkpointing()
    torch.testing.assert_close(together, apart[0] + apart[1], atol=1e-5, rtol=1e-4)


def test_records(adapt: Adapt) -> None:
    adapted = adapt("plain")
    latents = tiny.inputs("sd15", ROWS, SIZE).latents
    with torch.no_grad():
        made = adapted(latents, TIMESTEPS, conditions(), record=EVERYTHING)
        everywhere = adapted(latents, TIMESTEPS, conditions(mask=torch.ones(2, 1, *SIZE)), record=EVERYTHING)
        plain = adapted(latents, TIMESTEPS, conditions())
    assert made.fair > 0.001 and everywhere.fair == 0
    assert made.attention.shape == (2, 1, *SIZE) and made.attention.min() > 0 and made.attention.max() < 1
    assert [x.shape for x in made.features] == [(2, 9, 32)] * 3  # up_blocks.1 of three transformers, two halvings
    assert -1 < made.localisation < 1
    assert plain == replace(plain, fair=None, localisation=None, attention=None, features=None)
    assert torch.equal(plain.noise, made.noise)


def test_the_share_of_alike_tokens_is_their_number() -> None:
    share = identity_share(torch.zeros(2, 3, 8), torch.randn(2, 6, 8), torch.randn(2, 2, 8), heads=2)
    torch.testing.assert_close(share, torch.full((2, 3), 2 / 8))


def test_progress_is_the_hosts() -> None:
    assert progress_of(torch.tensor([0, 999, 1200])).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_release_and_copies(model: UNet, kind: str) -> None:
    processors = dict(model.attn_processors)
    adapter, mode = KINDS[kind]
    adapted = AdaptedUNet(model, adapter(), mode=mode)
    with pytest.raises(HostError, match="already"):
        AdaptedUNet(model, adapter(), mode=mode)
    assert not any("adapter" in name for name, _ in model.named_parameters())
    twin = copy.deepcopy(adapted)
    with torch.no_grad():
        before = predict(adapted, conditions())
        for parameter in twin.adapter.parameters():
            parameter.mul_(0.5)
        assert torch.equal(predict(adapted, conditions()), before)
        assert not torch.equal(predict(twin, conditions()), before)
    adapted.release()
    assert model.attn_processors == processors
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_refusals(model: UNet, adapt: Adapt) -> None:
    cases: tuple[tuple[Adapter, Mode], ...] = (
        (tiny.gated_adapter(), "add"),
        (tiny.adapter("sd15"), "gated"),
        (tiny.text_query_adapter("sd15"), "add"),
        (tiny.adapter("sd15", wanted=True), "add"),
    )
    for adapter, mode in cases:
        with pytest.raises(HostError, match="cannot be trained in mode"):
            AdaptedUNet(model, adapter, mode=mode)
    with pytest.raises(HostError, match="made for SDXL"):
        AdaptedUNet(model, tiny.adapter("sdxl"))
    with pytest.raises(ValueError, match="the mask is"):
        predict(adapt("plain"), conditions(mask=torch.ones(2, 1, 5, 6)))


def test_a_gated_adapter_has_no_attention_to_record(adapt: Adapt) -> None:
    with pytest.raises(ValueError, match="L_FAIR"):
        predict(adapt("gated"), conditions(), record=EVERYTHING)
