"""torch.compile on every host: an identity acts as if nothing was compiled, and nothing of it stays in the code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from dp_adapter.core.injection import Injection
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import attachment
from dp_adapter.hosts.attach import diffusers as diffusers_host
from tests import tiny
from tests.hosts.attach.test_conformance import (
    IDLE,
    PAIR,
    QUARTER,
    SOME,
    largest,
    someone,
    someone_gated,
    someone_trained,
)
from tests.hosts.protocol import HOSTS, Host

RESTS = hasattr(torch.compiler, "set_stance")  # since torch 2.6

Call = Callable[[Host], Tensor]
Compile = Callable[[Host], Call]


@pytest.fixture(autouse=True)
def forget_code() -> Iterator[None]:
    yield
    cast(Any, torch)._dynamo.reset()


def call(host: Host) -> Tensor:
    with torch.no_grad():
        return host(tiny.inputs("sd15", PAIR))


def in_place(host: Host) -> Call:
    host.model.compile(backend="eager")
    return call


def block_by_block(host: Host) -> Call:
    for index in range(16):
        host.block(index).compile(backend="eager")
    return call


def wrapped(host: Any) -> Call:
    """What ``torch.compile`` returns is called instead of the model."""
    original = host.model
    compiled = torch.compile(original, backend="eager")

    def call_compiled(host: Any) -> Tensor:
        with patch.object(host, "model", compiled):
            return call(host)

    return call_compiled


def of_neo(host: Any) -> Call:
    """Forge neo's *Torch Compile* compiles anew around each call, by default without guards on its options."""

    def without_options(entries: Any) -> list[bool]:
        return ["transformer_options" not in entry.name for entry in entries]

    options: dict[str, Any] = {"options": {"guard_filter_fn": without_options}}

    def call_compiled(host: Any) -> Tensor:
        compiled = torch.compile(host.model, backend="eager", dynamic=False, fullgraph=False, **options)
        with patch.dict(host.unet.model._modules, {"diffusion_model": compiled}):
            return call(host)

    return call_compiled


@pytest.mark.skipif(not RESTS, reason="before torch 2.6 there are words instead")
@pytest.mark.parametrize(
    ("name", "compile_it"),
    [
        ("diffusers", in_place),
        ("diffusers", wrapped),
        ("diffusers", block_by_block),
        ("ldm", block_by_block),
        ("forge", of_neo),
    ],
)
def test_a_compiled_model_takes_an_identity_and_forgets_it(
    name: str, compile_it: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HOSTS[name]("sd15")
    injections = [
        Injection((someone("sd15", mask=SOME),)),
        Injection((someone_trained("sd15", mask=QUARTER),)),
        Injection((someone_gated("sd15", mask=SOME),)),
    ]
    plain, expected = call(host), [attached(host, one, call) for one in injections]
    assert all(largest(one - plain) > 1e-2 for one in expected)
    call_compiled = compile_it(host)
    assert torch.equal(attached(host, injections[0], call_compiled), expected[0]), "compiled with the identity inside"
    assert torch.equal(call_compiled(host), plain)
    for injection, one in zip(injections, expected, strict=True):  # compiled without one by now
        assert torch.equal(attached(host, injection, call_compiled), one)
        assert torch.equal(call_compiled(host), plain)
    if compile_it is not in_place:  # whose own hooks are not even asked
        monkeypatch.setattr(attachment, "uncompiled", nullcontext)
        try:  # where torch has compiled too often, it goes on without; never in silence with neither
            assert torch.equal(attached(host, injections[0], call_compiled), expected[0])
        except HostError as told:
            assert "never ran" in str(told)  # either is right


def attached(host: Host, injection: Injection, call_it: Call) -> Tensor:
    with host.attached(injection, PAIR):
        return call_it(host)


@pytest.mark.skipif(not RESTS, reason="before torch 2.6 there are words instead")
def test_compiled_code_is_used_again_afterwards() -> None:
    host, graphs = HOSTS["diffusers"]("sd15"), [0]

    def count(graph: Any, _inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            graphs[0] += 1
            return graph(*args)

        return run

    host.block(3).compile(backend=count)
    call(host)
    before = graphs[0]
    attached(host, Injection((someone("sd15"),)), call)
    assert before and graphs[0] == before
    with pytest.raises(KeyError), host.attached(Injection((someone("sd15"),)), PAIR):
        raise KeyError
    call(host)
    assert graphs[0] == 2 * before


@pytest.mark.skipif(not RESTS, reason="before torch 2.6 there are words instead")
@pytest.mark.parametrize("inside", [False, True], ids=["the model", "its blocks"])
def test_what_torch_compile_returns_is_attached_to_as_well(inside: bool) -> None:
    model, injection = tiny.unet("sd15").requires_grad_(False), Injection((someone("sd15", mask=SOME),))
    given = tiny.inputs("sd15", PAIR)
    with diffusers_host.attach(model, injection, PAIR):
        expected = tiny.call(model, given)
    compiled: Any = model
    if inside:
        model.mid_block = cast(Any, torch.compile(cast(Any, model.mid_block), backend="eager"))
    else:
        compiled = torch.compile(model, backend="eager")
    with diffusers_host.attach(compiled, injection, PAIR):
        assert torch.equal(tiny.call(compiled, given), expected)


@pytest.mark.parametrize("compile_it", [in_place, block_by_block])
@pytest.mark.parametrize("name", ["diffusers", "ldm", "forge"])
def test_before_torch_2_6_a_compiled_model_is_refused(
    name: str, compile_it: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HOSTS[name]("sd15")
    compile_it(host)
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    with pytest.raises(HostError, match="is compiled"), host.attached(Injection((someone("sd15"),)), PAIR):
        raise AssertionError


def test_before_torch_2_6_nothing_stays_in_code_that_was_made_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    host = HOSTS["diffusers"]("sd15")
    plain = call(host)
    layer = host.block(3).get_submodule("attn2")
    with host.attached(Injection((someone("sd15"),)), PAIR):
        layer.compile(backend="eager")
        assert largest(call(host) - plain) > 1e-2
    assert torch.equal(call(host), plain)


# Whatever the cause: a UNet that is called past its layers.


def past_its_layers(host: Host, computes: Callable[[int], bool]) -> AbstractContextManager[object]:
    """A step cache or a replacement: only the calls that ``computes`` says reach the model's layers."""
    forward, calls = host.model.forward, [0]
    kept: list[Any] = []

    def replaced(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if computes(calls[0]):
            kept[:] = [forward(*args, **kwargs)]
            return kept[0]
        x: Tensor = args[0]
        return kept[0] if kept else SimpleNamespace(sample=x) if type(host).__name__ == "Diffusers" else x

    return patch.object(host.model, "forward", replaced)


@pytest.mark.parametrize("who", [someone, someone_trained, someone_gated])
def test_an_identity_that_acted_nowhere_is_told(small: Host, who: Any) -> None:
    injection = Injection((who("sd15", mask=SOME),))
    with past_its_layers(small, never), pytest.raises(HostError, match="never ran"), small.attached(injection, PAIR):
        call(small)


def test_it_is_told_in_the_middle_of_a_long_run(small: Host) -> None:
    calls, injection = 0, Injection((someone("sd15"),))
    with past_its_layers(small, never), pytest.raises(HostError, match="10 times"), small.attached(injection, PAIR):
        for _ in range(100):
            calls += 1
            call(small)
    assert calls == 10


def never(_number: int) -> bool:
    return False


def often(number: int) -> bool:
    return number % 3 == 1


def late(number: int) -> bool:
    return number == 4


@pytest.mark.parametrize("computes", [often, late])
def test_a_step_cache_may_leave_out_some_calls(small: Host, computes: Callable[[int], bool]) -> None:
    with past_its_layers(small, computes), small.attached(Injection((someone("sd15"),)), PAIR):
        for _ in range(20):
            call(small)


@pytest.mark.parametrize("idle", ["weight 0", "empty mask", "before the span", "curve is 0 here", "levels are 0"])
def test_an_identity_that_has_nothing_to_do_is_not_missed(small: Host, idle: str) -> None:
    changes, schedule = IDLE[idle]
    acting: dict[str, Any] = {"mask": SOME, **changes}
    injection = Injection((someone("sd15", **acting),), schedule=schedule)
    with past_its_layers(small, never), small.attached(injection, PAIR):
        for _ in range(20):
            call(small)


def test_the_error_that_ends_a_run_stays(small: Host) -> None:
    injection = Injection((someone("sd15"),))
    with past_its_layers(small, never), pytest.raises(KeyError), small.attached(injection, PAIR):
        call(small)
        raise KeyError


def first_argument(x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return x


def test_blocks_that_run_something_else_are_told_too(small: Host) -> None:
    with ExitStack() as stack:
        for index in range(16):
            stack.enter_context(patch.object(small.block(index), "forward", first_argument))
        with pytest.raises(HostError, match="never ran"), small.attached(Injection((someone("sd15"),)), PAIR):
            call(small)
