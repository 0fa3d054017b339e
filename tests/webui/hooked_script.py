"""Our script, registered in the fake host over the tiny SD1.5 UNet."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.hosts import ldm_unet
from tests.webui import fake_webui


def nothing(_step: int) -> None:
    pass


class UNet:
    """The tiny SD1.5 UNet as the fake host's sampler calls it."""

    context = tiny.CONTEXT

    def __init__(self) -> None:
        self.module = ldm_unet.of(tiny.unet("sd15"), groups=8)
        self.before_call: Callable[[int], None] = nothing

    def __call__(self, latents: Tensor, context: Tensor, step: int) -> Tensor:
        self.before_call(step)
        timesteps = torch.full((len(latents),), 800.0 - 300 * step)
        with torch.no_grad(), ldm_unet.resizing():
            return self.module(latents, timesteps, context=context)


@contextmanager
def registered(adapter: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """The fake host with this adapter as its only one, our script in it, and what it warned of."""
    models = folder / "models" / "dp_adapter"
    models.mkdir(parents=True)
    (models / adapter.name).hardlink_to(adapter)
    with fake_webui.installed(models.parent) as fake:
        fake_webui.with_settings_page(fake)
        from dp_adapter.webui.host import compat, shared_session
        from dp_adapter.webui.job import stop

        sys.modules.pop("dp_adapter.webui.script", None)  # the class comes from the host at hand
        script = importlib.import_module("dp_adapter.webui.script")
        warned: list[str] = []
        monkeypatch.setattr(stop, "warn", warned.append)
        compat.webui.cache_clear()
        shared_session.forget()
        script.register()
        unet = UNet()
        model = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet.module), sd_checkpoint_info=object())
        yield SimpleNamespace(fake=fake, script=script, unet=unet, model=model, warned=warned)
        shared_session.forget()
