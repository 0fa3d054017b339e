"""On what a run computes: accelerate's devices and processes, and the most memory that this process has used."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch

from dp_adapter.errors import MissingDependencyError, TrainingError
from dp_adapter.training.config import Config

_KINDS = ("NO", "FSDP", *(f"MULTI_{device}" for device in ("CPU", "GPU", "NPU", "MLU", "XPU")))
"""Kinds of accelerate in which every process holds the whole of what is trained (with FSDP: ``sharding``)."""


def accelerator_for(config: Config) -> Any:
    """accelerate's Accelerator, as its own configuration and the run's say.

    Raises:
        MissingDependencyError: accelerate is not installed.
        TrainingError: it is configured for a kind whose state cannot be saved here.
    """
    try:
        from accelerate import Accelerator  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingDependencyError("accelerate", "Training", "train") from error
    accelerator: Any = cast(Any, Accelerator)(mixed_precision=config.precision, cpu=config.device == "cpu")
    kind = str(accelerator.distributed_type.value)
    if kind not in _KINDS:
        raise TrainingError(
            f"accelerate is configured for {kind}, which splits the states that a checkpoint here holds whole",
            "Choose plain multi-GPU (DDP) in accelerate config; what is trained is small.",
        )
    return accelerator


def peak(device: torch.device) -> int:
    """Bytes: allocated by torch on a CUDA device, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # which keeps no such figure where Python can read it
        return 0
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024  # kilobytes everywhere but there
