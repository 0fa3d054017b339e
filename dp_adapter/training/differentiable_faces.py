"""Face embeddings that gradients pass through, for the identity loss on decoded pictures.

Shapes: B pictures of H x W px; crops of s x s px.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dp_adapter.identity.encoders.shipped_networks import SFACE, shipped_path
from dp_adapter.identity.faces.face import similarity, template
from dp_adapter.training.onnx_to_torch import OnnxNet


class FaceNetwork(Protocol):
    """Anything that embeds aligned faces and lets gradients through.

    Attributes:
        size: side of the aligned crop in px, a multiple of 112 or 128.
    """

    size: int

    def __call__(self, crops: Tensor) -> Tensor:
        """RGB crops [B, 3, s, s] in 0..255 -> embeddings [B, e], of any length."""
        ...


class DifferentiableSFace(nn.Module):
    """The shipped SFace, as ``identity.faces.face_encoders.SFace`` runs it: crops [B, 3, 112, 112] -> [B, 128]."""

    size = 112

    def __init__(self) -> None:
        super().__init__()
        self.net = OnnxNet(shipped_path(SFACE))

    def forward(self, crops: Tensor) -> Tensor:
        with torch.autocast(crops.device.type, enabled=False):
            return self.net(crops.float())


def embed_faces(network: FaceNetwork, pictures: Tensor, points: NDArray[np.float32]) -> Tensor:
    """Embeddings [B, e] of the face in each picture, whose landmarks are known from the target picture.

    Args:
        pictures: [B, 3, H, W] RGB in -1..1, as the VAE decodes them; points: [B, 5, 2] in px of them.

    Raises:
        FaceError: the five points of a face coincide.
    """
    height, width = pictures.shape[-2:]
    warps = np.stack([crop_warp(five, height, width, network.size) for five in points])
    return embed_crops(network, pictures, torch.as_tensor(warps))


def embed_crops(network: FaceNetwork, pictures: Tensor, warps: Tensor) -> Tensor:
    """`embed_faces` with warps that are known, `crop_warp` [B, 2, 3], so that the CPU computes nothing."""
    return network(crop_decoded(pictures, warps, network.size))


def crop_decoded(pictures: Tensor, warps: Tensor, size: int) -> Tensor:
    """`crop_aligned` from pictures in -1..1, as the VAE decodes them, to crops in 0..255."""
    return crop_aligned((pictures.float() * 0.5 + 0.5).clamp(0, 1) * 255, warps, size)


def crop_aligned(pictures: Tensor, warps: Tensor, size: int) -> Tensor:
    """``identity.faces.face.norm_crop`` for a batch, with gradients: [B, 3, H, W] -> [B, 3, s, s], black outside.

    Without OpenCV's rounding of coordinates to 1/32 px.

    Args:
        warps: ``crop_warp`` of each picture's face, [B, 2, 3].
    """
    with torch.autocast(pictures.device.type, enabled=False):  # whose product in half precision is off by a pixel
        grid = F.affine_grid(warps.to(pictures), [len(pictures), 3, size, size], align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def crop_warp(points: NDArray[np.float32], height: int, width: int, size: int) -> NDArray[np.float32]:
    """The warp [2, 3] from an aligned crop to its picture, in ``affine_grid``'s coordinates (-1 and 1 at the edges).

    Args:
        points: [5, 2], left eye, right eye, nose, left and right mouth corner, in px between pixel centres.
    """
    back = np.linalg.inv(np.vstack([similarity(np.asarray(points, np.float32), template(size)), [0, 0, 1]]))
    # A pixel centre at 0 is half a pixel from the edge, which is at -1.
    into = np.array([[size / 2, 0, (size - 1) / 2], [0, size / 2, (size - 1) / 2], [0, 0, 1]])
    out = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])
    return (out @ back @ into)[:2].astype(np.float32)
