"""Encoders' files whose tensors, heads and configurations say anything: features or a sentence."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as some
from torch import Tensor

from dp_adapter.errors import DPAdapterError, WeightsError
from dp_adapter.identity.encoders.clip import ClipVision
from dp_adapter.identity.encoders.clip_file import PATCH, POSITIONS, PROJECTION
from dp_adapter.identity.encoders.eva import EvaVision
from dp_adapter.identity.encoders.transface import TransFace
from tests import tiny, tiny_pulid
from tests.hostile.tries import hostile

PICTURE = np.zeros((32, 32, 3), np.uint8)


def clip_tensors() -> dict[str, Tensor]:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = transformers.CLIPVisionConfig(**sizes, patch_size=14, image_size=28, projection_dim=8)
    return dict(transformers.CLIPVisionModelWithProjection(config).state_dict())


TENSORS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "clip": clip_tensors,
    "eva": tiny_pulid.eva_tensors,
    "transface": tiny.transface_tensors,
}
CHANGES: list[Callable[[Tensor], Tensor]] = [
    lambda one: one[:0],
    lambda one: one[:1],
    lambda one: one[None],
    lambda one: one.flatten(),
    lambda one: one.repeat(2, *[1] * (one.ndim - 1)) if one.ndim else one[None],
    lambda one: one.to(torch.int64),
    lambda one: one.to(torch.complex64),
    lambda one: one.half(),
    lambda one: torch.full_like(one.float(), float("nan")),
    lambda one: torch.tensor(1.0),
    lambda one: torch.zeros(1).expand(one.shape),
    lambda one: one.to_sparse(),
]


def run(kind: str, path: Path) -> None:
    if kind == "clip":
        ClipVision(path).encode(PICTURE)
    elif kind == "eva":
        EvaVision(path).encode(np.zeros((32, 32, 3), np.float32))
    else:
        TransFace(path)._network.run(torch.zeros(1, 3, 112, 112), lambda network, given: (network(given),))


@hostile
@given(
    kind=some.sampled_from(sorted(TENSORS)),
    changes=some.lists(some.tuples(some.integers(0, 999), some.integers(-1, len(CHANGES) - 1)), max_size=3),
    suffix=some.sampled_from([".pt", ".safetensors"]),
)
@example(kind="transface", changes=[(0, 8)], suffix=".pt")
@example(kind="eva", changes=[(0, 8)], suffix=".pt")
@example(kind="clip", changes=[(0, 8)], suffix=".pt")
def test_any_tensors(kind: str, changes: list[tuple[int, int]], suffix: str) -> None:
    tensors = TENSORS[kind]()
    names = sorted(tensors)
    for place, change in changes:
        name = names[place % len(names)]
        if change < 0:
            tensors.pop(name, None)
        elif name in tensors and tensors[name].layout == torch.strided and tensors[name].ndim:
            tensors[name] = CHANGES[change](tensors[name])
    if suffix == ".safetensors":
        tensors = {name: one.to_dense().contiguous() for name, one in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"tower{suffix}"
        if suffix == ".pt":
            torch.save(tensors, path)
        else:
            tiny.write(path, tensors, "safetensors")
        try:
            run(kind, path)
        except DPAdapterError as error:
            assert "tower" in str(error)


SHAPES: list[Any] = [[], [0], [1, 1], [2**40, 2**40], [-1, 3, 14, 14], "abc", None, [4, 3, 10**6, 10**6], {}, [1.5]]
HEAD: Mapping[str, Any] = {
    PATCH: [64, 3, 14, 14],
    POSITIONS: [5, 64],
    PROJECTION: [8, 64],
    "vision_model.encoder.layers.0.mlp.fc1.weight": [8, 64],
}


@hostile
@given(
    name=some.sampled_from(sorted(HEAD)),
    shape=some.sampled_from(SHAPES),
    length=some.sampled_from([None, 0, 2**40, 2**63]),
    config=some.sampled_from(
        [None, "", "[]", "{", '{"num_attention_heads": 0}', '{"hidden_act": "no"}', '{"num_attention_heads": "x"}', "3"]
    ),
)
def test_any_head(name: str, shape: Any, length: int | None, config: str | None) -> None:
    head = {key: {"dtype": "F32", "shape": size, "data_offsets": [0, 0]} for key, size in {**HEAD, name: shape}.items()}
    text = json.dumps(head).encode()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tower"
        folder.mkdir()
        start = (len(text) if length is None else length).to_bytes(8, "little")
        (folder / "model.safetensors").write_bytes(start + text)
        if config is not None:
            (folder / "config.json").write_text(config)
        with pytest.raises(WeightsError, match=r"tower|model\.safetensors"):
            run("clip", folder)
