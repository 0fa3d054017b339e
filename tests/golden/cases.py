"""Reads the folders of golden cases: official outputs for small random checkpoints (see the README beside them)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(os.environ.get("DP_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))

# The kind of checkpoint that a case names -> the row of our format table.
FAMILIES = {
    "ip-adapter": "ip-adapter",
    "ip-adapter-plus": "ip-adapter-plus",
    "ip-adapter-plus-face": "ip-adapter-plus",
    "ip-adapter-full-face": "ip-adapter-full-face",
    "faceid": "faceid",
    "faceid-plus": "faceid-plus",
    "faceid-plusv2": "faceid-plus",
    "faceid-portrait": "faceid-portrait",
    "faceid-portrait-unnorm": "faceid-sequence",
    "instantid": "faceid-sequence",
    "facechain-fact": "facechain-fact",
    "pulid": "pulid",
    "storymaker": "storymaker",
    "masterweaver": "masterweaver",
    "w-plus": "w-plus",
}


@dataclass(frozen=True)
class Case:
    """One folder; tensors are read on first use."""

    path: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def family(self) -> str | None:
        return FAMILIES.get(self.facts["type"])

    @property
    def inputs(self) -> dict[str, Tensor]:
        return _tensors(self.path / "inputs.safetensors")

    @property
    def expected(self) -> dict[str, Tensor]:
        return _tensors(self.path / "expected.safetensors")

    @property
    def base(self) -> Path:
        return (self.path / self.facts["base"]).resolve() if "base" in self.facts else self.path

    def assert_close(self, actual: Tensor, expected: Tensor, kind: str) -> None:
        tolerance = self.facts["tolerance"][kind]
        torch.testing.assert_close(actual, expected, atol=tolerance["atol"], rtol=tolerance["rtol"])

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=4)
def _tensors(path: Path) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in load_file(str(path)).items()}


def cases() -> Iterator[Case]:
    for file in sorted(FOLDER.glob("*/case.json")):
        yield Case(file.parent, json.loads(file.read_text(encoding="utf-8")))
