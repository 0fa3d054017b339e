"""TransFace's patch features, and the head that it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dp_adapter.errors import WeightsError
from dp_adapter.identity.encoders.transface import TransFace, head_on_black
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import norm_crop
from dp_adapter.identity.faces.face_parsing import SelfieParser
from dp_adapter.identity.pictures.picture_files import Picture
from tests import tiny


def reference(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The published network step by step, patch by patch and head by head, in double precision."""
    weights = {key: value.double() for key, value in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[name + ".weight"], weights.get(name + ".bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"])

    kernel = weights["patch_embed.proj.weight"]
    width, _, side, _ = kernel.shape
    cells = 112 // side
    patches = [
        (kernel * pixels[0, :, i * side : (i + 1) * side, j * side : (j + 1) * side].double()).sum((1, 2, 3))
        for i in range(cells)
        for j in range(cells)
    ]
    x = torch.stack(patches) + weights["patch_embed.proj.bias"] + weights["pos_embed"][0]
    for block in sorted({key.split(".")[1] for key in weights if key.startswith("blocks.")}):
        name = f"blocks.{block}."
        q, k, v = linear(norm(x, name + "norm1"), name + "attn.qkv").split(width, 1)
        heads = [slice(i * width // 8, (i + 1) * width // 8) for i in range(8)]
        attended = [torch.softmax(q[:, h] @ k[:, h].T * (width // 8) ** -0.5, -1) @ v[:, h] for h in heads]
        x = x + linear(torch.cat(attended, 1), name + "attn.proj")
        inner = linear(norm(x, name + "norm2"), name + "mlp.fc1").clamp(0, 6)
        x = x + linear(inner, name + "mlp.fc2")
    return norm(x, "norm")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "transface.pt", tiny.transface_tensors(), "zip")


def test_patch_features_are_the_published_networks(file: Path, astronaut: Picture) -> None:
    face = YuNet().detect(astronaut)[0]
    parts = SelfieParser().parse(astronaut, face)
    network = TransFace(file)
    assert network.kind == f"transface/{tiny.FACE}x2x16" and len(network.version) == 16
    patches = network.encode(astronaut, face, parts)
    crop = norm_crop(head_on_black(astronaut, parts), face.points, 112)
    pixels = torch.tensor(crop).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    assert patches.shape == (1, 16, tiny.FACE) and patches.dtype == torch.float32
    torch.testing.assert_close(patches[0].double(), reference(tiny.transface_tensors(), pixels), atol=1e-5, rtol=1e-4)


def test_only_the_head_is_left(astronaut: Picture) -> None:
    face = YuNet().detect(astronaut)[0]
    parts = SelfieParser().parse(astronaut, face)
    head = head_on_black(astronaut, parts)
    kept = head.max(-1) > 0
    assert kept[parts["face"] > 0.5].mean() > 0.99 and kept[(parts["hair"] > 0.9)].mean() > 0.9
    assert not kept[parts["background"] > 0.9].any()
    assert kept[parts["clothes"] > 0.9].mean() < 1e-3, "but where the head is grown by a few pixels"
    assert np.array_equal(head[kept], astronaut[kept])


def test_the_largest_head_is_taken_and_holes_are_filled() -> None:
    picture = np.full((100, 120, 3), 200, np.uint8)
    face, hair = np.zeros((100, 120), np.float32), np.zeros((100, 120), np.float32)
    face[20:60, 20:60] = 1
    face[35:40, 35:40] = 0  # an earring, or a lens
    hair[70:80, 90:100] = 1  # somebody else's
    parts = {"face": face, "hair": hair, "background": 1 - np.maximum(face, hair)}
    parts["background"][35:40, 35:40] = 0
    kept = head_on_black(picture, parts).max(-1) > 0
    assert kept[35:40, 35:40].all() and kept[20:60, 20:60].all() and not kept[70:80, 90:100].any()


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no TransFace .*transface-s"):
        TransFace(tiny.write(tmp_path / "fact.pt", tiny.fact_tensors(), "zip"))
    odd = tiny.transface_tensors()
    odd["pos_embed"] = odd["pos_embed"][:, :9]
    with pytest.raises(WeightsError, match=r"no TransFace .*9 patches of 28 px"):
        TransFace(tiny.write(tmp_path / "odd.pt", odd, "zip"))
    short = tiny.transface_tensors()
    del short["norm.bias"]
    network = TransFace(tiny.write(tmp_path / "short.pt", short, "zip"))
    picture = np.zeros((112, 112, 3), np.uint8)
    masks = {name: np.zeros((112, 112), np.float32) for name in ("face", "hair", "background")}
    from dp_adapter.identity.faces.face import TEMPLATE, Face

    with pytest.raises(WeightsError, match=r"short\.pt is an incomplete TransFace"):
        network.encode(picture, Face(np.array([0, 0, 112, 112], np.float32), TEMPLATE, 1.0), masks)
