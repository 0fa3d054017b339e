"""The most memory that this process has used."""

from __future__ import annotations

import sys

import torch


def peak(device: torch.device) -> int:
    """Bytes: allocated by torch on a CUDA device, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # which keeps no such figure where Python can read it
        return 0
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024  # kilobytes everywhere but there
