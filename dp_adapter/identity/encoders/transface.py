"""TransFace-S as FaceChain-FACT has it: patch features of the aligned head on black.

Source: modelscope/facechain@7bc7119 ``face_adapter/face_adapter_v1.py``. There a human parser (M2FP) cuts the head out
and RetinaFace looks for the points afterwards; here it is the session's parser, and the points of the chosen face.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dp_adapter.errors import WeightsError
from dp_adapter.hints import command
from dp_adapter.identity.encoders.encoder_device import EncoderDevice, LazyNetwork
from dp_adapter.identity.encoders.encoder_versions import fingerprint
from dp_adapter.identity.faces.face import Face, Floats, norm_crop
from dp_adapter.identity.pictures.picture_files import Picture

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.identity.encoders.transface_net import TransFaceNet

CATALOGUE = "transface-s"


class TransFace:
    """The encoder, sizes from its file.

    Args:
        path: ``ms1mv2_model_TransFace_S.pt``, or another TransFace at 112 px.

    Raises:
        WeightsError: damaged, or no TransFace.
    """

    def __init__(self, path: Path, placement: EncoderDevice | None = None) -> None:
        self._path = path
        self.shape = shape = _open(path)[0]
        self.kind = f"transface/{shape.width}x{shape.depth}x{shape.patches}"
        self.name = f"{self.kind}/{path.stem}"
        self._network = LazyNetwork(self.name, self._load, placement or EncoderDevice())

    @property
    def version(self) -> str:
        """Fingerprint of the file."""
        return fingerprint([self._path])

    def encode(self, picture: Picture, face: Face, parts: Mapping[str, Floats]) -> Tensor:
        """Patch features [1, L, c] of a face in an RGB picture.

        Args:
            parts: masks [H, W] in 0..1 by name, as a `FaceParser` gives them.
        """
        import torch

        crop = norm_crop(head_on_black(picture, parts), face.points, 112)
        pixels = torch.tensor(np.moveaxis(crop, -1, 0)[None].astype(np.float32) / 255)  # [1, 3, 112, 112] RGB, as there
        (patches,) = self._network.run((pixels - 0.5) / 0.5, lambda network, given: (network(given),))
        return patches

    def _load(self) -> TransFaceNet:
        from dp_adapter.weights.damage import explain

        network, weights = _open(self._path)
        try:
            network.load_state_dict(weights, strict=True, assign=True)
        except Exception as error:
            raise WeightsError(f"{self._path.name} is an incomplete TransFace: {explain(error)}", _hint()) from error
        return network


def _hint() -> str:
    return f"Get it again ({command(f'models get {CATALOGUE}')} says where it comes from)."


def _open(path: Path) -> tuple[TransFaceNet, dict[str, Tensor]]:
    """The network without numbers, and the file's tensors."""
    import torch

    from dp_adapter.identity.encoders.transface_net import TransFaceNet, patch_weights
    from dp_adapter.weights.damage import require_plain
    from dp_adapter.weights.files import open_weights

    file = open_weights(path)
    require_plain(path, file.tensors)
    weights = patch_weights(file.tensors)
    try:
        with torch.device("meta"):
            return TransFaceNet.like(weights), weights
    except Exception as error:  # a file may hold any shapes
        raise WeightsError(f"{path.name} is no TransFace ({error})", _hint()) from error


def head_on_black(picture: Picture, parts: Mapping[str, Floats]) -> Picture:
    """The picture [H, W, 3] without all that is not the largest head: face and hair, grown by a twentieth of the face.

    As ``get_mask_head`` there does it: contours without holes, and the face itself as its mask has it.
    """
    import cv2

    face, hair, person = parts["face"] > 0.5, parts["hair"] > 0.5, parts["background"] < 0.5
    size = max(int(np.sqrt(face.sum()) / 20), 1)
    grown = cv2.dilate((face | hair).astype(np.uint8), np.ones((size, size), np.uint8)) * person.astype(np.uint8)
    contours, _ = cv2.findContours(grown, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    head = np.zeros(face.shape, np.uint8)
    if contours:
        cv2.fillPoly(head, [max(contours, key=cv2.contourArea)], 1)
    return np.asarray(picture * (head | face)[..., None], np.uint8)
