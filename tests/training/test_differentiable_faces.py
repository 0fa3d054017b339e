"""Face networks that gradients pass through: the numbers of onnxruntime, and crops like the encoders'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from dp_adapter.errors import CatalogError
from dp_adapter.identity.encoders.shipped_networks import SFACE, open_network, shipped_path
from dp_adapter.identity.faces import face_encoders
from dp_adapter.identity.faces.face import TEMPLATE, Face, norm_crop
from dp_adapter.training.differentiable_faces import DifferentiableSFace, crop_aligned, crop_warp, embed_faces
from dp_adapter.training.onnx_to_torch import OnnxNet

POINTS = np.array([[196, 108], [246, 112], [222, 146], [196, 166], [238, 170]], np.float32)  # of the astronaut's face


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    from skimage import data

    return np.asarray(data.astronaut(), np.uint8)


@pytest.fixture(scope="module")
def sface() -> DifferentiableSFace:
    return DifferentiableSFace()


def as_decoded(picture: np.ndarray) -> Tensor:
    """[H, W, 3] in 0..255 -> [1, 3, H, W] in -1..1, as a VAE gives it."""
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_sface_is_onnxruntimes(sface: DifferentiableSFace) -> None:
    crops = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 255
    session = open_network(shipped_path(SFACE))
    expected = np.concatenate([np.asarray(session.run(["fc1"], {"data": crop[None].numpy()})[0]) for crop in crops])
    with torch.no_grad():
        mine = sface(crops).numpy()
    assert np.abs(mine - expected).max() < 1e-4 * np.abs(expected).max()


def aligned(picture: torch.Tensor, points: np.ndarray, size: int) -> torch.Tensor:
    height, width = picture.shape[-2:]
    return crop_aligned(picture, torch.from_numpy(crop_warp(points, height, width, size))[None], size)


def test_the_crop_is_the_encoders(astronaut: np.ndarray) -> None:
    expected = norm_crop(astronaut, POINTS, 112).astype(np.float32)
    picture = torch.tensor(astronaut).permute(2, 0, 1)[None].float()
    mine = aligned(picture, POINTS, 112)[0].permute(1, 2, 0).numpy()
    # OpenCV rounds coordinates to 1/32 px and the result to whole numbers.
    assert np.abs(mine - expected).mean() < 1.0 and np.quantile(np.abs(mine - expected), 0.99) < 6
    outside = aligned(picture, POINTS + 400, 112)
    assert outside[0, :, -20:].abs().max() == 0  # black beyond the picture, as there


def test_a_face_at_the_template_is_taken_as_it_is() -> None:
    picture = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(aligned(picture, TEMPLATE, 112), picture, atol=1e-4, rtol=0)


def test_embeddings_are_the_encoders_and_pass_gradients(sface: DifferentiableSFace, astronaut: np.ndarray) -> None:
    box = np.array([180, 60, 260, 190], np.float32)
    expected = face_encoders.SFace().embed(astronaut, Face(box, POINTS, 1.0))
    pictures = as_decoded(astronaut).requires_grad_()
    mine = torch.nn.functional.normalize(embed_faces(sface, pictures, POINTS[None]))
    assert float((mine.detach()[0] * torch.tensor(expected)).sum()) > 0.999
    mine[0, 0].backward()
    assert pictures.grad is not None and pictures.grad[..., 100:180, 190:250].abs().max() > 0
    assert pictures.grad[..., 300:, :].abs().max() == 0
    assert not list(sface.parameters()) and not sface.state_dict()


def test_refusals(tmp_path: Path) -> None:
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 6]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "tiny", shapes[:1], shapes[1:])
    onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
    with pytest.raises(CatalogError, match="cannot be trained through: Softmax"):
        OnnxNet(tmp_path / "x.onnx")
    (tmp_path / "y.onnx").write_bytes(b"no network at all")
    with pytest.raises(CatalogError, match="cannot be read as ONNX"):
        OnnxNet(tmp_path / "y.onnx")
