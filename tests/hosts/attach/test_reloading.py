"""Other weights that come into a UNet in the middle of sampling are computed with, whatever was made of the old ones.

Forge neo's fast refiner loads a state dict into the same UNet, AUTOMATIC1111's refiner and LoRA write into its weights,
Forge's LoRA puts other parameters in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.layer_versions import LayerState
from tests import tiny
from tests.hosts.attach.test_conformance import PAIR, SOME, largest, someone
from tests.hosts.attach.test_diffusers import file_lora, peft_model
from tests.hosts.attach.test_people import talking
from tests.hosts.attach.test_text_side import WORDS, by_word
from tests.hosts.protocol import HOSTS, Host

Change = Callable[[nn.Module, dict[str, Tensor]], None]


def load(model: nn.Module, state: dict[str, Tensor]) -> None:
    model.load_state_dict(state)


def assign(model: nn.Module, state: dict[str, Tensor]) -> None:
    model.load_state_dict(state, assign=True)


def write(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, weight in model.named_parameters():
        weight.copy_(state[name])


def swap_data(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, weight in model.named_parameters():
        weight.data = state[name]


def put_in(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, weight in state.items():
        path, _, own = name.rpartition(".")
        setattr(model.get_submodule(path), own, nn.Parameter(weight, requires_grad=False))


def injection(name: str) -> Injection:
    if name == "words":
        return Injection(talking("sd15", 2), sharing="words")
    if name == "text side":
        return Injection((by_word(),))
    return Injection((someone("sd15", mask=SOME),), form=name)  # type: ignore[arg-type]


def fresh(name: str, inference: bool = False) -> Host:
    """A host of its own, whose weights may have been made in inference mode, as Forge's are: they have no versions."""
    with torch.inference_mode(inference):
        host = HOSTS[name]("sd15")
        if inference:
            put_in(host.model, {key: value.clone() for key, value in host.model.state_dict().items()})
    return host


@pytest.fixture(scope="module")
def others() -> dict[str, dict[str, Tensor]]:
    """Per host, all weights of a model in another state."""
    generator = torch.Generator().manual_seed(8)

    def changed(weight: Tensor) -> Tensor:
        return weight + 0.1 * weight.std(unbiased=False) * torch.randn(weight.shape, generator=generator)

    states = {name: HOSTS[name]("sd15").model.state_dict() for name in HOSTS}
    return {name: {key: changed(value) for key, value in state.items()} for name, state in states.items()}


@pytest.mark.parametrize(
    ("form", "change"),
    [
        *[("folded", change) for change in (load, assign, write, swap_data, put_in)],
        *[(form, load) for form in ("half", "plain", "words", "text side")],
        ("words", put_in),
        ("text side", write),
    ],
)
@pytest.mark.parametrize("name", list(HOSTS))
def test_weights_that_change_on_the_way(
    name: str, form: str, change: Change, others: dict[str, dict[str, Tensor]]
) -> None:
    with torch.no_grad():
        goes_over_to(fresh(name), form, change, others[name])


@pytest.mark.parametrize("form", ["folded", "words", "text side"])
@pytest.mark.parametrize("name", list(HOSTS))
def test_a_state_dict_that_is_loaded_into_weights_without_versions(
    name: str, form: str, others: dict[str, dict[str, Tensor]]
) -> None:
    host = fresh(name, inference=True)
    assert all(weight.is_inference() for weight in host.model.parameters())
    with torch.inference_mode():
        goes_over_to(host, form, load, others[name])


def goes_over_to(host: Host, form: str, change: Change, state: dict[str, Tensor]) -> None:
    given, words = tiny.inputs("sd15", PAIR), WORDS if form == "text side" else None
    with host.attached(injection(form), PAIR, words=words):
        before = host(given)
        assert torch.equal(host(given), before)
        change(host.model, state)
        after = host(given)
        assert torch.equal(host(given), after)
    plain = replace(injection(form), form="plain")
    with host.attached(plain, PAIR, words=words):
        expected = host(given)
    assert largest(expected - before) > 1e-2 and largest(host(given) - expected) > 1e-2
    torch.testing.assert_close(after, expected, atol=2e-5, rtol=0)


def test_a_files_lora_stays_on_what_is_loaded_and_leaves_it(others: dict[str, dict[str, Tensor]]) -> None:
    torch.manual_seed(12)
    host, given, lora = fresh("diffusers"), tiny.inputs("sd15", PAIR), file_lora()
    adapted = replace(injection("folded"), lora=lora)
    with torch.no_grad():
        with host.attached(adapted, PAIR):
            host(given)
            load(host.model, others["diffusers"])
            after = host(given)
        with host.attached(replace(adapted, form="plain"), PAIR):
            torch.testing.assert_close(after, host(given), atol=2e-5, rtol=0)
    assert all(torch.equal(value, others["diffusers"][key]) for key, value in host.model.state_dict().items())


@pytest.mark.parametrize("how", ["off", "weaker"])
def test_a_peft_lora_that_is_changed_on_the_way(how: str) -> None:
    model: Any = peft_model()
    host = HOSTS["diffusers"]("sd15")
    host.model = model
    given = tiny.inputs("sd15", PAIR)

    def change() -> None:
        if how == "off":
            model.disable_adapters()
        for module in model.modules() if how == "weaker" else ():
            if hasattr(module, "lora_A"):
                module.scaling["default"] *= 0.3

    with torch.no_grad():
        with host.attached(injection("folded"), PAIR):
            before = host(given)
            change()
            after = host(given)
        with host.attached(injection("plain"), PAIR):
            expected = host(given)
    assert largest(before - expected) > 1e-3
    torch.testing.assert_close(after, expected, atol=2e-5, rtol=0)


def test_what_stays_the_same_is_not_made_anew(small: Host) -> None:
    """Not either where a host moves a weight out while it does not compute with it."""
    calls = [0]

    def count(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        calls[0] += args[0].ndim == 2  # not the host's own calls

    handles = [small.block(index).get_submodule("attn2.to_q").register_forward_hook(count) for index in range(16)]
    try:
        with small.attached(injection("folded"), PAIR):
            small(tiny.inputs("sd15", PAIR))
            made = calls[0]
            small(tiny.inputs("sd15", PAIR))
    finally:
        for handle in handles:
            handle.remove()
    assert made == calls[0] > 0


def test_weights_that_are_elsewhere_between_the_calls_do_not_count() -> None:
    """Sequential offloading puts new empty parameters in after each call."""
    layer = nn.Linear(2, 2)
    state = LayerState(layer)
    layer.to("meta")
    assert state.changed()
    layer.weight = nn.Parameter(torch.empty(2, 2, device="meta"))
    assert not state.changed()


def test_lora_that_a_host_keeps_beside_the_weights_counts() -> None:
    layer: Any = nn.Linear(2, 2)
    state = LayerState(layer, len)
    assert state.changed() and not state.changed()
    layer.forge_online_loras = {"weight": [torch.ones(2)]}
    assert state.changed() and not state.changed()
    layer.forge_online_loras = {"weight": [torch.ones(2)]}
    assert state.changed() and not state.changed()
    functions: list[object] = [print]
    layer.weight_function = functions
    assert state.changed() and not state.changed()
    functions.append(repr)
    assert state.changed() and not state.changed()
