"""ResAdapters with tensors changed: a companion whose shapes fit together, or a sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dp_adapter.errors import WeightsError
from dp_adapter.weights import res_adapter
from tests.hostile.test_checkpoints import change_tensor
from tests.hostile.tries import hostile

CONV = "lora_unet_down_blocks_2_downsamplers_0_conv"
LORA: dict[str, Tensor] = {
    f"{CONV}.alpha": torch.tensor(2.0),
    f"{CONV}.lora_down.weight": torch.randn(2, 4, 3, 3),
    f"{CONV}.lora_up.weight": torch.randn(4, 2, 1, 1),
}
NORMS = {"mid_block.resnets.0.norm1.weight": torch.ones(4), "mid_block.resnets.0.norm1.bias": torch.ones(4)}


@given(data=st.data(), of_norms=st.booleans())
@hostile
def test_any_tensors(data: st.DataObject, of_norms: bool) -> None:
    parts: list[dict[str, Any]] = [dict(LORA), dict(NORMS)]
    change_tensor(data.draw, parts[of_norms])
    with tempfile.TemporaryDirectory() as folder:
        for part, name in zip(parts, ("pytorch_lora_weights.bin", "diffusion_pytorch_model.bin"), strict=True):
            if any(tensor.numel() > 2**30 and tensor.untyped_storage().nbytes() > 2**20 for tensor in part.values()):
                return
            torch.save(part, Path(folder) / name)
        try:
            companion = res_adapter.read(Path(folder)).companion
        except WeightsError as error:
            assert "ResAdapter" in str(error) or ".bin" in str(error)
            return
    for conv in companion.convs.values():
        assert conv.to(torch.zeros(1)).term(torch.ones(1, conv.down.shape[1], 8, 8), (2, 2), (1, 1)).shape[1] == len(
            conv.up
        )
    for weight, bias in companion.norms.values():
        assert weight.shape == bias.shape and weight.ndim == 1
