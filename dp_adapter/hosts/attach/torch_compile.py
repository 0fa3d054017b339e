"""torch.compile: its code knows nothing of hooks that came later, and keeps those that it met."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from dp_adapter.errors import HostError


def original_of(unet: nn.Module) -> nn.Module:
    """The module inside what ``torch.compile`` returned; any other as it is."""
    return getattr(unet, "_orig_mod", unet)


@contextmanager
def uncompiled(unet: nn.Module) -> Generator[None]:
    """Inside, compiled code rests: everything runs as it was written, with the same numbers as if it never had been
    compiled. Nothing is compiled either, so that nothing of an attachment stays in it. Afterwards it is used again.

    Raises:
        HostError: before torch 2.6, which cannot do this: the UNet is compiled.
    """
    set_stance: Any = getattr(torch.compiler, "set_stance", None)
    if set_stance is not None:
        with set_stance("force_eager"):
            yield
        return
    if any(_is_compiled(module) for module in unet.modules()):
        raise HostError(
            f"This model is compiled (torch.compile), and in torch {torch.__version__} no adapter reaches into that",
            "Use it without torch.compile, or torch 2.6 or newer.",
        )
    try:
        yield
    finally:
        if dynamo := sys.modules.get("torch._dynamo"):  # somebody may have compiled it meanwhile
            cast(Any, dynamo).reset()


def _is_compiled(module: nn.Module) -> bool:
    own = vars(module)
    forward = own.get("forward")
    wrapped = "_orig_mod" in own.get("_modules", {}) or hasattr(forward, "_torchdynamo_orig_callable")
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None
