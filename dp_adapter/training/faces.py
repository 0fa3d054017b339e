"""Face embeddings that gradients pass through, for the identity loss on decoded pictures.

Shapes: B pictures of H x W px; crops of s x s px.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dp_adapter.identity.face import similarity, template
from dp_adapter.identity.shipped import SFACE, shipped
from dp_adapter.training.onnx_net import OnnxNet


class FaceNetwork(Protocol):
    """Anything that embeds aligned faces and lets gradients through.

    Attributes:
        size: side of the aligned crop in px, a multiple of 112 or 128.
    """

    size: int

    def __call__(self, crops: Tensor) -> Tensor:
        """RGB crops [B, 3, s, s] in 0..255 -> embeddings [B, e], of any length."""
        ...


class SFace(nn.Module):
    """The shipped SFace, as ``identity.embed.SFace`` runs it: crops [B, 3, 112, 112] -> [B, 128].

    Args:
        path: another SFace file; the shipped one when None.
    """

    size = 112

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.net = OnnxNet(path or shipped(SFACE))

    def forward(self, crops: Tensor) -> Tensor:
        with torch.autocast(crops.device.type, enabled=False):
            return self.net(crops.float())


class ArcFace(nn.Module):
    """A recognition network of insightface's packs (``w600k_r50.onnx``): [B, 3, 112, 112] -> [B, e].

    insightface's ``ArcFaceONNX`` takes RGB scaled to -1..1 (mean and deviation 127.5).
    """

    size = 112

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.net = OnnxNet(path)

    def forward(self, crops: Tensor) -> Tensor:
        with torch.autocast(crops.device.type, enabled=False):
            return self.net((crops.float() - 127.5) / 127.5)


def embed_faces(network: FaceNetwork, pictures: Tensor, points: NDArray[np.float32]) -> Tensor:
    """Embeddings [B, e] of the face in each picture, whose landmarks are known from the target picture.

    Args:
        pictures: [B, 3, H, W] RGB in -1..1, as the VAE decodes them; points: [B, 5, 2] in px of them.

    Raises:
        FaceError: the five points of a face coincide.
    """
    shown = (pictures.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return network(aligned(shown, points, network.size))


def aligned(pictures: Tensor, points: NDArray[np.float32], size: int) -> Tensor:
    """``identity.face.norm_crop`` for a batch, with gradients: [B, 3, H, W] -> [B, 3, s, s], black outside.

    Without OpenCV's rounding of coordinates to 1/32 px.

    Args:
        points: [B, 5, 2], left eye, right eye, nose, left and right mouth corner, in px of the pictures.
    """
    height, width = pictures.shape[-2:]
    grids = [_grid(similarity(np.asarray(five, np.float32), template(size)), height, width, size) for five in points]
    grid = torch.as_tensor(np.stack(grids)).to(pictures)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _grid(warp: NDArray[np.float64], height: int, width: int, size: int) -> NDArray[np.float32]:
    """Where each pixel of the crop lies in the picture, in ``grid_sample``'s coordinates: [s, s, 2].

    Args:
        warp: [2, 3] from the picture to the crop, in px between pixel centres.
    """
    back = np.linalg.inv(np.vstack([warp, [0, 0, 1]]))[:2]
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    there = np.stack([x, y, np.ones_like(x)], -1) @ back.T  # [s, s, 2]
    # A pixel centre at 0 is half a pixel from the edge, which is at -1.
    return ((2 * there + 1) / [width, height] - 1).astype(np.float32)
