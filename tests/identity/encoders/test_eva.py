"""EVA02-CLIP's image tower: held to the official code, read from every container, found where it lies."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.errors import CatalogError, WeightsError
from dp_adapter.identity.encoders import eva
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.encoders.eva import EvaVision
from dp_adapter.identity.encoders.eva_net import rotary_angles
from tests import tiny, tiny_pulid
from tests.precision import needs_half

NAME = "EVA02_CLIP_L_336_psz14_s6B"
SIZE = tiny_pulid.SIDE * tiny_pulid.PATCH
# Of ToTheBeginning/PuLID@1aa2fc7 eva_clip/eva_vit_model.py (EVAVisionTransformer, with the switches of
# EVA02-CLIP-L-14-336.json) with these weights and pixels; the first four numbers of some hidden states, (scale, token).
POOLED = [
    1.63966, -0.84581, -5.5281, -3.33495, 0.2905, -3.23471, 3.20796, -2.0739, -0.54686, -2.19687, -1.24277, -0.45931,
    -0.29181, -2.36294, -4.68579, -1.23972, 4.87058, -0.9296, 0.31276, 0.10261, -3.67074, 1.06741, -0.25488, 0.45826,
]  # fmt: skip
HIDDEN = {
    (0, 0): [-1.90673, -1.65333, 3.20347, 6.32828],
    (0, 5): [-1.38311, -2.53618, 2.85211, 6.74616],
    (2, 9): [3.09722, 8.50064, -2.43935, 8.35897],
    (4, 0): [2.11982, 4.0014, 4.9279, 2.33938],
    (4, 7): [3.12134, 3.45477, 3.99971, 2.52489],
}


def pixels() -> Tensor:
    return (torch.arange(3 * SIZE * SIZE, dtype=torch.float64) * 0.37).sin().float().reshape(1, 3, SIZE, SIZE)


def saved(path: Path, tensors: Mapping[str, Tensor] | None = None) -> Path:
    container: tiny.Container = "safetensors" if path.suffix == ".safetensors" else "zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    return tiny.write(path, tiny_pulid.eva_tensors() if tensors is None else tensors, container)


def outputs(tower: EvaVision, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return tower._build().to(dtype).eval()(pixels().to(dtype))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_equal_to_the_official_code(tmp_path: Path, suffix: str) -> None:
    tower = EvaVision(saved(tmp_path / f"{NAME}{suffix}"))
    pooled, hidden = outputs(tower)
    torch.testing.assert_close(pooled[0], torch.tensor(POOLED), atol=3e-5, rtol=1e-5)
    assert hidden.shape == (1, 5, tiny_pulid.SIDE**2 + 1, tiny_pulid.EVA)
    for (scale, token), expected in HIDDEN.items():
        torch.testing.assert_close(hidden[0, scale, token, :4], torch.tensor(expected), atol=3e-5, rtol=1e-5)


def test_the_rotation_is_that_of_224_px_pictures() -> None:
    cos, sin = rotary_angles(24, 64)
    assert cos.shape == (576, 32)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(576, 32))
    assert torch.equal(cos[0], torch.ones(32)), "the first patch is not turned"
    down, right = 24, 1  # patches of the next row and the next column
    assert sin[down, 0] == pytest.approx(np.sin(16 / 24)) and not sin[down, 16:].any()
    assert sin[right, 16] == pytest.approx(np.sin(16 / 24)) and not sin[right, :16].any()


def test_names_and_nestings(tmp_path: Path) -> None:
    plain = {key: value for key, value in tiny_pulid.eva_tensors().items() if "rope" not in key}
    expected = outputs(EvaVision(saved(tmp_path / "plain.safetensors", plain)))
    bare = {key.removeprefix("visual."): value for key, value in plain.items() if key.startswith("visual.")}
    others: dict[str, Mapping[str, Tensor]] = {
        "timm.safetensors": tiny_pulid.timm_names(plain),
        "bare.safetensors": bare,
        "module.pt": {f"module.{key}": value for key, value in plain.items()},
    }
    towers = [EvaVision(saved(tmp_path / name, tensors)) for name, tensors in others.items()]
    torch.save({"state_dict": dict(plain), "epoch": 6}, tmp_path / "nested.pt")
    for tower in (*towers, EvaVision(tmp_path / "nested.pt")):
        assert all(torch.equal(one, other) for one, other in zip(outputs(tower), expected, strict=True)), tower.name
        assert tower.shape.head == tiny_pulid.EVA, "without the table a narrow tower is one head"


@needs_half
def test_half_precision_agrees(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt")
    tower = EvaVision(path)
    for one, other in zip(outputs(tower, torch.float16), outputs(tower), strict=True):
        assert one.dtype == torch.float16 and (one.float() - other).norm() < 3e-3 * other.norm()


def test_a_picture_is_resized_and_normalised(tmp_path: Path) -> None:
    white = eva.preprocess(np.ones((512, 512, 3), np.float32), 336)
    assert white.shape == (1, 3, 336, 336)
    torch.testing.assert_close(white[0, :, 100, 100], torch.tensor([1.9303, 2.0749, 2.1459]), atol=1e-4, rtol=0)
    ramp = np.repeat(np.linspace(0, 1, 512, dtype=np.float32)[None, :, None], 512, 0).repeat(3, 2)
    row = eva.preprocess(ramp, 336)[0, 0, 0] * 0.26862954 + 0.48145466
    assert (row[1:] > row[:-1]).all() and abs(float(row[168]) - 0.5) < 2e-3
    tower = EvaVision(saved(tmp_path / "x.pt"))
    features = tower.encode(ramp)
    assert tower.loaded and features.pooled.shape == (1, tiny_pulid.EVA_OUT)
    with torch.no_grad():
        pooled, hidden = tower._build().float().eval()(eva.preprocess(ramp, SIZE))
    assert torch.equal(pooled, features.pooled) and torch.equal(hidden, features.hidden)


def test_what_is_no_tower_is_refused(tmp_path: Path) -> None:
    file = tiny_pulid.eva_tensors()
    without = {key: value for key, value in file.items() if key != "visual.head.weight"}
    with pytest.raises(WeightsError, match=r"not an image tower of EVA02-CLIP \('head.weight'\)"):
        EvaVision(saved(tmp_path / "a.pt", without))
    with pytest.raises(WeightsError, match="sizes that no tower for PuLID has"):
        EvaVision(saved(tmp_path / "b.pt", tiny_pulid.eva_tensors(depth=12)))
    (tmp_path / "c.pt").write_bytes(b"no zip")
    with pytest.raises(WeightsError, match="not a weight file, or is damaged"):
        EvaVision(tmp_path / "c.pt")
    (tmp_path / "d.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{]")
    with pytest.raises(WeightsError, match="damaged"):
        EvaVision(tmp_path / "d.safetensors")
    lacking = {key: value for key, value in file.items() if key != "visual.blocks.3.mlp.w2.bias"}
    tower = EvaVision(saved(tmp_path / "e.pt", lacking))
    with pytest.raises(WeightsError, match=r"incomplete .*blocks\.3\.mlp\.w2\.bias"):
        outputs(tower)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(witness),)

    torch.save({"visual.cls_token": torch.zeros(1), "trap": Trap()}, tmp_path / "eva.pt", pickle_module=pickle)
    with pytest.raises(WeightsError, match="contains code"):
        EvaVision(tmp_path / "eva.pt")
    assert not witness.exists()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """huggingface_hub's cache, empty."""
    monkeypatch.setattr(eva, "HUB", tmp_path / "hub" / eva.CACHED)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "place",
    [
        f"models/clip_vision/{NAME}.pt",
        f"models/eva_clip/{NAME}.pt",
        "models/clip_vision/renamed.safetensors",
        f"extensions/sd-webui-controlnet-evaclip/models/{eva.CACHED}/11af/{NAME}.pt",
        f"hub/{eva.CACHED}/11af/{NAME}.pt",
    ],
)
def test_it_is_found(tmp_path: Path, no_hub: Path, place: str) -> None:
    path = saved(tmp_path / place)
    encoders = EncoderPool([tmp_path / "models"])
    tower = encoders.eva(tiny_pulid.EVA)
    assert tower.name.endswith(path.stem) and encoders.eva(tiny_pulid.EVA) is tower
    tower.encode(np.ones((8, 8, 3), np.float32))
    assert [one is tower for one in encoders.eva_towers()] == [True], "the loaded one is not loaded again"
    encoders.release()
    assert not encoders.eva(tiny_pulid.EVA).loaded


def test_the_tower_is_chosen_by_width(tmp_path: Path, no_hub: Path) -> None:
    saved(tmp_path / "clip_vision" / "eva_wide.pt", tiny_pulid.eva_tensors(width=48))
    saved(tmp_path / "clip_vision" / f"{NAME}.safetensors")
    (tmp_path / "clip_vision" / "eva_broken.pt").write_bytes(b"")
    encoders = EncoderPool([tmp_path])
    assert [encoders.eva(width).shape.width for width in (32, 48)] == [32, 48]
    assert {tower.shape.width for tower in encoders.eva_towers()} == {32, 48}
    with pytest.raises(
        CatalogError,
        match=r"hidden width 1024 was found; seen: .*eva_broken.pt is truncated.*models get eva02-clip-l-336",
    ) as caught:
        encoders.eva(1024)
    assert "eva_wide.pt (hidden 48)" in str(caught.value)
    with pytest.raises(CatalogError, match="seen: none"):
        EncoderPool([tmp_path / "elsewhere"]).eva(1024)
