"""Which encoder serves a checkpoint, and what is said when none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp_adapter.errors import CatalogError, WeightsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from tests import tiny

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
    encoders = EncoderPool([root])
    assert encoders.clip(hidden=32).encode(CROP).hidden.shape == (1, 5, 32)
    assert encoders.clip(hidden=40).encode(CROP).hidden.shape == (1, 5, 40)
    assert encoders.clip(projection=20).encode(CROP).image_embeds.shape == (1, 20)
    assert encoders.clip(projection=24) is encoders.clip(hidden=32), "loaded once"


def test_a_missing_tower_names_what_was_seen(root: Path) -> None:
    with pytest.raises(
        CatalogError, match=r"hidden width 1280 was found; seen: first \(hidden 32, projection 24\), sec"
    ):
        EncoderPool([root]).clip(hidden=1280)
    with pytest.raises(CatalogError, match="seen: none"):
        EncoderPool([root / "absent"]).clip(projection=1024)


def test_several_roots(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_tower(other / "image_encoder" / "third", 64, 16)
    encoders = EncoderPool([root, other])
    assert encoders.clip(hidden=64).shape.projection_dim == 16


def test_folders_of_other_extensions(root: Path, tmp_path: Path) -> None:
    """ControlNet's clip_vision/*.pth, and what Forge keeps loose; the model folders come first."""
    from safetensors.torch import load_file, save_file

    downloads, preprocessors = tmp_path / "downloads", tmp_path / "ControlNetPreprocessor"
    third = load_file(str(save_tower(tmp_path / "third", 64, 16) / "model.safetensors"))
    (downloads / "clip_vision").mkdir(parents=True)
    torch.save(third, downloads / "clip_vision" / "clip_h.pth")
    fourth = load_file(str(save_tower(tmp_path / "fourth", 72, 12) / "model.safetensors"))
    preprocessors.mkdir()
    save_file(fourth, str(preprocessors / "CLIP-ViT-bigG.safetensors"))
    (preprocessors / "annotator.pth").write_bytes(b"never opened")
    save_file({"x": torch.ones(1)}, str(preprocessors / "other.safetensors"))
    save_tower(downloads / "clip_vision" / "again", 32, 24, seed=1)
    encoders = EncoderPool([root], [tmp_path / "absent", downloads, preprocessors])
    assert encoders.clip(hidden=64).name == "clip/64x2x16/clip_h"
    assert encoders.clip(hidden=72).name == "clip/72x2x12/CLIP-ViT-bigG"
    assert encoders.clip(hidden=32).name == "clip/32x2x24/first"
    assert [tower.kind for tower in encoders.towers()] == [
        "clip/32x2x24",
        "clip/40x2x20",
        "clip/64x2x16",
        "clip/72x2x12",
    ]
    assert not any(tower.loaded for tower in encoders.towers())


PUBLISHED = {  # width, mlp, layers, patch, positions, projection
    "clip_g.safetensors": (1664, 8192, 48, 14, 257, 1280),
    "clip_h.safetensors": (1280, 5120, 32, 14, 257, 1024),
    "clip_vitl.safetensors": (1024, 4096, 24, 14, 257, 768),
}
STRANGERS = {
    "a_vit_g.safetensors": (1408, 6144, 40, 14, 257, 1024),
    "a_vitl_336.safetensors": (1024, 4096, 24, 14, 577, 768),
    "a_dfn_378.safetensors": (1280, 5120, 32, 14, 730, 1024),
}


def test_published_towers_are_told_apart_from_those_of_one_equal_width(tmp_path: Path) -> None:
    from tests.identity.encoders.test_clip import header_only

    folder = tmp_path / "clip_vision"
    folder.mkdir()
    for name, sizes in STRANGERS.items():
        header_only(folder / name, sizes)
    for widths, id_ in (
        ({"projection": 1024}, "clip-vit-h"),
        ({"hidden": 1280}, "clip-vit-h"),
        ({"hidden": 1024}, "clip-vit-l"),
        ({"projection": 1280}, "clip-vit-bigg"),
    ):
        with pytest.raises(CatalogError, match=rf"seen: .*models get {id_}.*into .*clip_vision.*licence"):
            EncoderPool([tmp_path]).clip(**widths)
    for name, sizes in PUBLISHED.items():
        header_only(folder / name, sizes)
    encoders = EncoderPool([tmp_path])
    for name, (hidden, *_, projection) in PUBLISHED.items():
        assert encoders.clip(hidden=hidden) is encoders.clip(projection=projection)
        assert encoders.clip(hidden=hidden).name.endswith(name.removesuffix(".safetensors"))
    assert len(list(encoders.towers())) == 3, "no identity is saved as strangers see it"


def test_a_file_is_looked_into_again_when_it_changes(root: Path) -> None:
    encoders = EncoderPool([root])
    with pytest.raises(CatalogError, match=r"no towers or damaged: broken\.safetensors, empty"):
        encoders.clip(hidden=64)
    mended = save_tower(root / "mended", 64, 16) / "model.safetensors"
    mended.replace(root / "clip_vision" / "broken.safetensors")
    assert encoders.clip(hidden=64).shape.projection_dim == 16


def test_release_loads_again(root: Path) -> None:
    encoders = EncoderPool([root])
    before, parser, yunet = encoders.clip(hidden=32), encoders.parser, encoders.yunet
    expected = before.encode(CROP).hidden
    (root / "transface").mkdir()
    tiny.write(root / "transface" / "ms1mv2_model_TransFace_S.pt", tiny.transface_tensors(), "zip")
    transface = encoders.transface()
    assert encoders.transface() is transface, "loaded once"
    encoders.release()
    assert encoders.transface() is not transface
    after = encoders.clip(hidden=32)
    assert after is not before and encoders.parser is not parser and encoders.yunet is not yunet
    assert torch.equal(after.encode(CROP).hidden, expected)


def test_a_tower_cut_short_is_said(root: Path) -> None:
    path = root / "clip_vision" / "second.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"second\.safetensors is truncated or damaged"):
        EncoderPool([root]).clip(hidden=40).encode(CROP)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config_is_said(root: Path, text: str) -> None:
    (root / "clip_vision" / "first" / "config.json").write_text(text)
    with pytest.raises(CatalogError, match=r"seen: second.*; no towers or damaged: .*first"):
        EncoderPool([root]).clip(hidden=32)


def test_packs_and_their_encoders_are_shared() -> None:
    encoders = EncoderPool([])
    assert encoders.pack("buffalo_l") is encoders.pack("buffalo_l")
    assert encoders.arcface("buffalo_l", normed=True) is encoders.arcface("buffalo_l", normed=True)
    names = {encoders.arcface(pack, normed).name for pack in ("buffalo_l", "antelopev2") for normed in (True, False)}
    assert len(names) == 4, "vectors of different kinds never share a cache key"
