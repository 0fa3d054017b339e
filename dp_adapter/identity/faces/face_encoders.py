"""Face networks' embeddings: the protocol, and the shipped encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from dp_adapter.identity.encoders.encoder_versions import fingerprint
from dp_adapter.identity.encoders.shipped_networks import CPU, SFACE, open_network, shipped_path
from dp_adapter.identity.faces.face import Face, Floats, norm_crop
from dp_adapter.identity.pictures.picture_files import Picture

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class FaceEncoder(Protocol):
    """Anything that turns a face into one vector."""

    @property
    def name(self) -> str:
        """Short name, part of cache keys; vectors of different names must not be compared."""
        ...

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def version(self) -> str:
        """Fingerprint of the network's file, `encoder_versions.fingerprint`."""
        ...

    def embed(self, picture: Picture, face: Face) -> Floats:
        """The face's vector [dim], float32."""
        ...


class SFace:
    """SFace (Zhong et al., TIP 2021), opencv_zoo face_recognition_sface_2021dec, int8 weights, L2-normalised.

    Same-person threshold of opencv_zoo: cosine 0.363.

    Args:
        path: another SFace file; the shipped one when None.
        providers: onnxruntime's, in order of preference.
        threads: onnxruntime's; 0 for all cores.
    """

    name = "sface"
    dim = 128

    def __init__(self, path: Path | None = None, providers: Sequence[str] = CPU, threads: int = 0) -> None:
        self._path = path
        self._providers = tuple(providers)
        self._threads = threads

    @property
    def version(self) -> str:
        return fingerprint([self._path or shipped_path(SFACE)])

    @cached_property
    def _network(self) -> InferenceSession:
        return open_network(self._path or shipped_path(SFACE), self._providers, self._threads)

    def embed(self, picture: Picture, face: Face) -> Floats:
        """Vector [128] of length 1.

        Raises:
            CatalogError: the network's file is missing or damaged.
            MissingDependencyError: onnxruntime is not installed.
        """
        crop = norm_crop(picture, face.points, 112)
        blob = np.moveaxis(crop, -1, 0)[None].astype(np.float32)  # [1, 3, 112, 112] RGB, 0..255
        vector = cast("Floats", self._network.run(["fc1"], {"data": blob})[0])[0]
        return vector / np.linalg.norm(vector)
