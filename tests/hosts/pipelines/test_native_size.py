"""How large the pictures of a base model are, as its files say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dp_adapter.hosts.pipelines import native_size, single_file
from dp_adapter.hosts.pipelines.load_pipeline import load

SMALL_BASE = Path(__file__).parents[3] / "models" / "demo" / "dp_small_base.safetensors"


def checkpoint(path: Path, **metadata: str) -> Path:
    save_file({"a": torch.zeros(1)}, str(path), metadata)
    return path


@pytest.mark.parametrize(
    ("resolution", "size"),
    [("512x512", 512), ("768x1024", 1024), ("128", 128), ("0x0", None), ("large", None), ("9999999x1", None)],
)
def test_a_modelspec_header_says_it(tmp_path: Path, resolution: str, size: int | None) -> None:
    path = checkpoint(tmp_path / "a.safetensors", **{"modelspec.resolution": resolution})
    assert single_file.stated_size(path) == size
    assert native_size.of_file(path, "sdxl") == (size or 1024)


def test_files_that_say_nothing_are_of_their_familys_size(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    (tmp_path / "old.ckpt").write_bytes(b"nothing")
    plain = checkpoint(tmp_path / "plain.safetensors")
    for path in (tmp_path / "damaged.safetensors", tmp_path / "old.ckpt", tmp_path / "absent.safetensors", plain):
        assert (native_size.of_file(path, "sd15"), native_size.of_file(path, "sdxl")) == (512, 1024)


def test_configurations_beside_the_file_come_first(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "b.safetensors", **{"modelspec.resolution": "512x512"})
    (tmp_path / "b" / "unet").mkdir(parents=True)
    (tmp_path / "b" / "model_index.json").write_text("{}")
    config = tmp_path / "b" / "unet" / "config.json"
    for text, size in ((json.dumps({"sample_size": 32}), 256), ("{}", 512), ("{", 512)):
        config.write_text(text)
        assert native_size.of_file(path, "sd15") == size
    assert native_size.of_file(SMALL_BASE, "sd15") == 128


def pipeline(sample_size: object, **parts: Any) -> Any:
    return SimpleNamespace(
        unet=SimpleNamespace(config=SimpleNamespace(sample_size=sample_size)), vae_scale_factor=8, **parts
    )


def test_a_pipeline_says_it() -> None:
    assert native_size.of_pipeline(pipeline(16)) == 128 and native_size.of_pipeline(pipeline((64, 96))) == 768
    assert native_size.of_pipeline(pipeline(None)) == 512
    assert native_size.of_pipeline(pipeline(None, text_encoder_2=None)) == 1024
    assert native_size.of_pipeline(load(SMALL_BASE, "cpu")) == 128
