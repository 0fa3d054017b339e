"""The hosts of the conformance battery; each must come out of every test as it went in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dp_adapter.hosts.attach.sites import Base
from tests.hosts.protocol import HOSTS, Host, host_of, original_state, same_state, state_of


def _untouched(name: str, base: Base) -> Iterator[Host]:
    host = host_of(name, base)
    before = original_state(host)
    with torch.no_grad():
        yield host
    assert same_state(before, state_of(host.model)), "the test left something behind in the model"


@pytest.fixture(params=[(name, base) for name in HOSTS for base in ("sd15", "sdxl")], ids="-".join)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Every host with both base models."""
    yield from _untouched(*request.param)


@pytest.fixture(params=list(HOSTS))
def small(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Every host with SD1.5 only, where SDXL's greater depth would show nothing more."""
    yield from _untouched(request.param, "sd15")


@pytest.fixture(params=list(HOSTS))
def large(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Every host with SDXL only."""
    yield from _untouched(request.param, "sdxl")
