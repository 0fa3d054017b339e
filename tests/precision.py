"""Precisions that tests compute in on the CPU."""

from __future__ import annotations

import pytest
import torch


def multiplies_half() -> bool:
    """Whether this torch multiplies matrices of float16 on the CPU, which 2.1 does not."""
    one = torch.ones(1, 1, dtype=torch.float16)
    try:
        return bool(one @ one == 1)
    except RuntimeError:
        return False


needs_half = pytest.mark.skipif(not multiplies_half(), reason="this torch computes no float16 on the CPU")
FLOAT16 = pytest.param(torch.float16, id="torch.float16", marks=needs_half)
