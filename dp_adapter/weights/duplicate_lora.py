"""FaceID's LoRA as a file of its own: the same numbers as inside the checkpoint, so that only one of them may act.

Public naming: ``lora_unet_<path>_attn1_to_q.lora_down.weight`` (h94/IP-Adapter-FaceID).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dp_adapter.core.adapter import LowRank
from dp_adapter.errors import WeightsError
from dp_adapter.weights.files import open_weights

# The first attention in checkpoint order: its layer 0.
_FIRST = ("down_blocks_0_attentions_0_transformer_blocks_0", "down_blocks_1_attentions_0_transformer_blocks_0")


def is_same(path: Path, lora: Sequence[LowRank]) -> bool:
    """Whether a LoRA file holds the LoRA that came inside a checkpoint; False for a file that cannot be read."""
    ours = next((one for one in lora if one.layer == 0 and one.linear == "to_q"), None)
    if ours is None:
        return False
    try:
        tensors = open_weights(path).tensors
    except WeightsError:
        return False
    for block in _FIRST:
        down = tensors.get(f"lora_unet_{block}_attn1_to_q.lora_down.weight")
        if down is not None:
            return down.shape == ours.down.shape and torch.equal(down.half(), ours.down.half())
    return False
