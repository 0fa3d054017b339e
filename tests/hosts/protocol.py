"""What the conformance battery asks of a host, and the hosts that it runs on."""

from __future__ import annotations

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


class Diffusers:
    def __init__(self, base: Base) -> None:
        self.base: Base = base
        self.model: nn.Module = tiny.unet(base)

    def __call__(self, given: tiny.Inputs, timestep: float | None = None) -> Tensor:
        return tiny.call(self.model, given, timestep)

    def attached(
        self,
        injection: Injection,
        rows: Sequence[Row],
        maps: WordMaps | None = None,
        words: PersonWords | None = None,
    ) -> AbstractContextManager[object]:
        return diffusers_host.attach(self.model, injection, rows, maps=maps, words=words, alphas_cumprod=tiny.ALPHAS)

    def block(self, index: int) -> nn.Module:
        return self.model.get_submodule(site_names(self.base)[index].diffusers)

    def bare(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.block(index)(*args, **kwargs)


class Ldm:
    """AUTOMATIC1111's: ldm's own UNet, called as the WebUI calls it."""

    def __init__(self, base: Base) -> None:
        self.base: Base = base
        self.model: nn.Module = ldm_unet.of(tiny.unet(base), groups=8)

    def __call__(self, given: tiny.Inputs, timestep: float | None = None) -> Tensor:
        return ldm_unet.call(self.model, given, timestep)

    def attached(
        self,
        injection: Injection,
        rows: Sequence[Row],
        maps: WordMaps | None = None,
        words: PersonWords | None = None,
    ) -> AbstractContextManager[object]:
        return ldm_host.attach(self.model, injection, rows, maps=maps, words=words, alphas_cumprod=tiny.ALPHAS)

    def block(self, index: int) -> nn.Module:
        return self.model.get_submodule(site_names(self.base)[index].ldm)

    def bare(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.block(index)(*args, **kwargs)


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


State = list[tuple[str, str, object]]


def state_of(model: nn.Module) -> State:
    """Identity of every module, parameter, buffer, hook and plain attribute of a model, ``forward`` included.

    The objects themselves are in the list, so that none can be freed and its address given to another.
    """
    found: State = []
    for path, module in cast("list[tuple[str, nn.Module]]", list(model.named_modules())):
        found.append((path, "module", module))
        for name, value in vars(module).items():
            if isinstance(value, dict):  # parameters, buffers, children and all kinds of hooks
                items = cast(dict[object, object], value).items()
                found.extend((path, f"{name}[{key}]", inner) for key, inner in items)
            found.append((path, name, value))
    return found


@lru_cache
def original_state(host: Host) -> State:
    """The state of a host's model before its first test."""
    return state_of(host.model)


def same_state(before: State, after: State) -> bool:
    return len(before) == len(after) and all(
        old[:2] == new[:2] and old[2] is new[2] for old, new in zip(before, after, strict=True)
    )
