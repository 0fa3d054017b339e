"""Which encoder serves a checkpoint, and what is said when none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp_adapter.errors import CatalogError, WeightsError
from dp_adapter.identity.encoders import Encoders

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CROP = np.full((60, 60, 3), 90, np.uint8)


def save_tower(folder: Path, hidden: int, projection: int, seed: int = 0) -> Path:
    """A random vision tower in transformers' naming, saved by transformers."""
    torch.manual_seed(seed)
    config: Any = transformers.CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=1,
        patch_size=14,
        image_size=28,
        projection_dim=projection,
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two towers, in a folder and as a file, beside files that are none."""
    save_tower(tmp_path / "clip_vision" / "first", 32, 24)
    save_tower(tmp_path / "second", 40, 20).joinpath("model.safetensors").rename(
        tmp_path / "clip_vision" / "second.safetensors"
    )
    (tmp_path / "clip_vision" / "notes.txt").write_text("no model")
    (tmp_path / "clip_vision" / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{]")
    (tmp_path / "clip_vision" / "empty").mkdir()
    (tmp_path / "clip_vision" / "empty" / "config.json").write_text("{}")
    return tmp_path


def test_the_tower_is_chosen_by_width(root: Path) -> None:
    encoders = Encoders([root])
    assert encoders.clip(hidden=32).encode(CROP).hidden.shape == (1, 5, 32)
    assert encoders.clip(hidden=40).encode(CROP).hidden.shape == (1, 5, 40)
    assert encoders.clip(projection=20).encode(CROP).image_embeds.shape == (1, 20)
    assert encoders.clip(projection=24) is encoders.clip(hidden=32), "loaded once"


def test_a_missing_tower_names_what_was_seen(root: Path) -> None:
    with pytest.raises(
        CatalogError, match=r"hidden width 1280 was found; seen: first \(hidden 32, projection 24\), sec"
    ):
        Encoders([root]).clip(hidden=1280)
    with pytest.raises(CatalogError, match="seen: none"):
        Encoders([root / "absent"]).clip(projection=1024)


def test_several_roots(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_tower(other / "image_encoder" / "third", 64, 16)
    encoders = Encoders([root, other])
    assert encoders.clip(hidden=64).shape.projection_dim == 16


def test_release_loads_again(root: Path) -> None:
    encoders = Encoders([root])
    before, parser, yunet = encoders.clip(hidden=32), encoders.parser, encoders.yunet
    expected = before.encode(CROP).hidden
    encoders.release()
    after = encoders.clip(hidden=32)
    assert after is not before and encoders.parser is not parser and encoders.yunet is not yunet
    assert torch.equal(after.encode(CROP).hidden, expected)


def test_a_tower_cut_short_is_said(root: Path) -> None:
    path = root / "clip_vision" / "second.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"second\.safetensors is damaged"):
        Encoders([root]).clip(hidden=40).encode(CROP)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config_is_said(root: Path, text: str) -> None:
    (root / "clip_vision" / "first" / "config.json").write_text(text)
    with pytest.raises(CatalogError, match=r"seen: second.*; no towers or damaged: .*first"):
        Encoders([root]).clip(hidden=32)


def test_packs_and_their_encoders_are_shared() -> None:
    encoders = Encoders([])
    assert encoders.pack("buffalo_l") is encoders.pack("buffalo_l")
    assert encoders.arcface("buffalo_l", normed=True) is encoders.arcface("buffalo_l", normed=True)
    names = {encoders.arcface(pack, normed).name for pack in ("buffalo_l", "antelopev2") for normed in (True, False)}
    assert len(names) == 4, "vectors of different kinds never share a cache key"
