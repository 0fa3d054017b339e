"""One pass in Forge: what its sampler ran is what the identity was put into."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dp_adapter.core.injection import Injection
from dp_adapter.core.types import Grid
from dp_adapter.errors import HostError
from tests import tiny
from tests.hosts.attach.test_conformance import PAIR, someone
from tests.hosts.forge_host import Forge

pytest.importorskip("starlette", reason="the hosts bring it")


def past_its_layers(x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return x


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from dp_adapter.webui.host import compat
    from dp_adapter.webui.job.attach import AttachedPass, attach

    monkeypatch.setattr(compat, "webui", lambda: "neo")
    host = Forge("sd15")
    p = SimpleNamespace(sd_model=SimpleNamespace(forge_objects=SimpleNamespace(unet=host.unet)))
    given = tiny.inputs("sd15", PAIR)

    def step(inside: AttachedPass, of: Forge = host) -> None:
        assert not inside.before_step(SimpleNamespace(x=given.latents))
        with torch.no_grad():
            of(given, marks=(0, 1))

    def begin(**changes: Any) -> AttachedPass:
        return attach(p, Injection((someone("sd15", **changes),)), Grid(16, 16), 1)

    yield SimpleNamespace(host=host, step=step, begin=begin)


def test_what_acted_is_fine(job: Any) -> None:
    with job.begin() as inside:
        inside.require_acted()  # nothing was sampled yet
        job.step(inside)
        inside.require_acted()


def test_a_model_that_is_called_past_its_layers_is_told(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.host.model, "forward", past_its_layers)
    with job.begin() as inside:
        job.step(inside)
        with pytest.raises(HostError, match="never ran"):
            inside.require_acted()
    with job.begin() as inside:
        job.step(inside)  # broken off: nobody asks, and leaving says nothing


def test_another_model_is_told(job: Any) -> None:
    with job.begin() as inside:
        job.step(inside, Forge("sd15"))
        with pytest.raises(HostError, match="another model"):
            inside.require_acted()


def test_an_identity_without_weight_is_not_missed(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.host.model, "forward", past_its_layers)
    with job.begin(mask=torch.zeros(1, 64, 64)) as inside:
        job.step(inside)
        job.step(inside, Forge("sd15"))
        inside.require_acted()
