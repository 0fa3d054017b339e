"""The devices and processes of a run, as accelerate is configured, and the most memory that this process has used."""

from __future__ import annotations

import os
import sys
from typing import Any, cast

import torch

from dp_adapter.errors import MissingDependencyError, TrainingError
from dp_adapter.training.config import Config
from dp_adapter.training.parallel import deepspeed

_KINDS = ("NO", "FSDP", "DEEPSPEED", *(f"MULTI_{device}" for device in ("CPU", "GPU", "NPU", "MLU", "XPU")))
"""Kinds of accelerate in which every process holds the whole of what is trained (``fsdp``, ``deepspeed``)."""


def make_accelerator(config: Config) -> Any:
    """Makes accelerate's Accelerator after its own configuration and the run's.

    Raises:
        MissingDependencyError: accelerate is not installed.
        TrainingError: it is configured for a kind that splits what is saved whole here.
    """
    try:
        from accelerate import Accelerator  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingDependencyError("accelerate", "Training", "train") from error
    # With DeepSpeed, which would convert the trained weights, autocast is our own: ``deepspeed``.
    precision = "no" if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" else config.precision
    accelerator: Any = cast(Any, Accelerator)(mixed_precision=precision, cpu=config.device == "cpu")
    kind = str(accelerator.distributed_type.value)
    if kind not in _KINDS:
        raise TrainingError(
            f"accelerate is configured for {kind}, which splits the states that a checkpoint here holds whole",
            "Choose multi-GPU (DDP), FSDP or DeepSpeed in accelerate config.",
        )
    if kind == "DEEPSPEED":
        deepspeed.require(accelerator, config)
    return accelerator


def synchronise(device: torch.device) -> None:
    """Waits until a CUDA device has computed everything that was queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes that torch allocated on a CUDA device, else the process's largest resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # which keeps no such figure where Python can read it
        return 0
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024  # kilobytes everywhere but there
