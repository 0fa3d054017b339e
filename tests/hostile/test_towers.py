"""Image towers whose files say anything: a tower that encodes, or a sentence that names the file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import save_file
from torch import Tensor

from dp_adapter.errors import WeightsError
from dp_adapter.identity.encoders.clip import ClipVision
from dp_adapter.identity.encoders.clip_file import PATCH, POSITIONS, PROJECTION
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.encoders.eva import EvaVision
from tests import tiny_pulid
from tests.hostile.tries import hostile


def clip_tensors() -> dict[str, Tensor]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = cast(Any, CLIPVisionConfig)(
        hidden_size=64,
        intermediate_size=64,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=32,
        patch_size=16,
    )
    state: dict[str, Tensor] = cast(Any, CLIPVisionModelWithProjection)(config).state_dict()
    return {key: value.contiguous() for key, value in state.items() if not key.endswith("position_ids")}


CLIP = clip_tensors()
EVA = {key: value for key, value in tiny_pulid.eva_tensors().items() if value.ndim}


def mutate(tensors: Mapping[str, Tensor], key: str, how: str) -> dict[str, Tensor]:
    value = tensors[key]
    changed = {
        "scalar": torch.ones(()),
        "flat": value.flatten(),
        "deeper": value[None],
        "empty": value.new_zeros(0, *value.shape[1:]),
        "one": value[:1],
        "int8": torch.ones(value.shape, dtype=torch.int8),
        "turned": value.transpose(0, -1).contiguous(),
    }
    if how == "gone":
        return {name: one for name, one in tensors.items() if name != key}
    return {**tensors, key: changed[how]}


HOW = some.sampled_from(["scalar", "flat", "deeper", "empty", "one", "int8", "turned", "gone"])
PLACE = some.one_of(some.sampled_from([PATCH, POSITIONS, PROJECTION]), some.sampled_from(sorted(CLIP)))


@hostile
@given(key=PLACE, how=HOW)
def test_clip(key: str, how: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clip_vision").mkdir()
        path = Path(folder) / "clip_vision" / "tower.safetensors"
        save_file(mutate(CLIP, key, how), str(path))
        try:
            features = ClipVision(path).encode(torch.zeros(40, 40, 3, dtype=torch.uint8).numpy())
        except WeightsError as error:
            assert "tower" in str(error)
        else:
            assert features.image_embeds.shape[-1] in (1, 16, 64)
        list(EncoderPool([Path(folder)]).towers())  # goes on past it


@hostile
@given(key=some.sampled_from(sorted(EVA)), how=HOW)
def test_eva(key: str, how: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tower.safetensors"
        save_file(mutate(EVA, key, how), str(path))
        try:
            EvaVision(path).encode(torch.zeros(40, 40, 3).numpy())
        except WeightsError as error:
            assert "tower" in str(error)


def test_a_layer_with_a_huge_number_is_one_layer(tmp_path: Path) -> None:
    """Counted by their numbers, the layers of a file of a few bytes would fill any memory."""
    prefix = next(key for key in EVA if ".blocks.0." in key).partition("blocks.0.")[0]
    path = tmp_path / "tower.safetensors"
    save_file({**EVA, f"{prefix}blocks.999999999.norm1.weight": torch.ones(1)}, str(path))
    with pytest.raises(WeightsError, match="tower"):
        EvaVision(path).encode(torch.zeros(40, 40, 3).numpy())
