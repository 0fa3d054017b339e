"""What the conformance battery asks of a host, and the hosts that it runs on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.text.text_side import PersonWords
from dp_adapter.core.types import Row
from dp_adapter.hosts.attach import diffusers as diffusers_host
from dp_adapter.hosts.attach import ldm as ldm_host
from dp_adapter.hosts.attach.sites import Base, site_names
from dp_adapter.hosts.attach.word_maps import WordMaps
from tests import tiny
from tests.hosts import forge_host, ldm_unet


class Host(Protocol):
    """One UNet in the hands of one host. The numbers in it are those of ``tiny.unet(base)``, whatever the host."""

    base: Base
    model: nn.Module  # all that a patch may touch

    def __call__(self, given: tiny.Inputs, timestep: float | None = None) -> Tensor:
        """One call of the UNet as the host makes it: [R, 4, h, w]."""
        ...

    def attached(
        self,
        injection: Injection,
        rows: Sequence[Row],
        maps: WordMaps | None = None,
        words: PersonWords | None = None,
    ) -> AbstractContextManager[object]: ...

    def block(self, index: int) -> nn.Module:
        """The transformer block of a site in checkpoint order: ``attn1``, ``norm2``, ``attn2``, ``norm3``."""
        ...

    def bare(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Calls a block once more with what it was called with, but without what was attached then."""
        ...


class Hooked:
    """A UNet that is reached by torch hooks."""

    def __init__(self, base: Base, model: nn.Module, attach: Callable[..., AbstractContextManager[object]]) -> None:
        self.base: Base = base
        self.model = model
        self._attach = attach

    def attached(
        self,
        injection: Injection,
        rows: Sequence[Row],
        maps: WordMaps | None = None,
        words: PersonWords | None = None,
    ) -> AbstractContextManager[object]:
        return self._attach(self.model, injection, rows, maps=maps, words=words, alphas_cumprod=tiny.ALPHAS)

    def block(self, index: int) -> nn.Module:
        return self.model.get_submodule(site_names(self.base)[index].diffusers)

    def bare(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.block(index)(*args, **kwargs)


class Diffusers(Hooked):
    def __init__(self, base: Base) -> None:
        super().__init__(base, tiny.unet(base), diffusers_host.attach)

    def __call__(self, given: tiny.Inputs, timestep: float | None = None) -> Tensor:
        return tiny.call(self.model, given, timestep)


class Ldm(Hooked):
    """AUTOMATIC1111's: ldm's own UNet, called as the WebUI calls it."""

    def __init__(self, base: Base) -> None:
        super().__init__(base, ldm_unet.of(tiny.unet(base), groups=8), ldm_host.attach)

    def __call__(self, given: tiny.Inputs, timestep: float | None = None) -> Tensor:
        return ldm_unet.call(self.model, given, timestep)

    def block(self, index: int) -> nn.Module:
        return self.model.get_submodule(site_names(self.base)[index].ldm)


HOSTS: Mapping[str, Callable[[Base], Host]] = {
    "diffusers": Diffusers,
    "ldm": Ldm,
    **forge_host.hosts(),
}


@lru_cache
def host_of(name: str, base: Base) -> Host:
    """One host for the whole battery; every test must leave it as it was."""
    return HOSTS[name](base)


@lru_cache(maxsize=256)
def unpatched(host: Host, *case: Any) -> Tensor:
    """The output without any adapter; ``case`` are the arguments of ``tiny.inputs`` after the base."""
    with torch.no_grad():
        return host(tiny.inputs(host.base, *case))


# path, module, its attributes, and the entries of those that are dicts: parameters, buffers, children, hooks
State = list[tuple[str, nn.Module, dict[str, object], dict[str, dict[object, object]]]]


def state_of(model: nn.Module) -> State:
    """Every module, parameter, buffer, hook and plain attribute of a model, ``forward`` included.

    The objects themselves are in it, so that none can be freed and its address given to another.
    """
    found: State = []
    for path, module in cast("list[tuple[str, nn.Module]]", list(model.named_modules())):
        attributes = dict(vars(module))
        inner = {name: dict(value) for name, value in attributes.items() if isinstance(value, dict)}
        found.append((path, module, attributes, inner))
    return found


@lru_cache
def original_state(host: Host) -> State:
    """The state of a host's model before its first test."""
    return state_of(host.model)


def same_state(before: State, after: State) -> bool:
    """Whether all objects are the same ones, not only equal."""
    return len(before) == len(after) and all(
        old[0] == new[0]
        and old[1] is new[1]
        and _same_entries(old[2], new[2])
        and old[3].keys() == new[3].keys()
        and all(_same_entries(entries, new[3][name]) for name, entries in old[3].items())
        for old, new in zip(before, after, strict=True)
    )


def _same_entries(before: Mapping[Any, object], after: Mapping[Any, object]) -> bool:
    return list(before) == list(after) and all(map(operator.is_, before.values(), after.values()))
