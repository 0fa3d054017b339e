from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class Network:
    taskname: str
    model_file: str
    input_size: tuple[int, int]
    def detect(self, img: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]: ...
    def get_feat(self, imgs: NDArray[np.uint8]) -> NDArray[np.float32]: ...
    def get(self, img: NDArray[np.uint8], face: object) -> object: ...

class Face:
    bbox: NDArray[np.float32]
    kps: NDArray[np.float32]
    det_score: float
    embedding: NDArray[np.float32]
    normed_embedding: NDArray[np.float32]

class FaceAnalysis:
    models: dict[str, Network]
    det_model: Network
    def __init__(self, name: str, allowed_modules: Sequence[str], providers: Sequence[str]) -> None: ...
    def prepare(self, ctx_id: int, det_thresh: float, det_size: tuple[int, int]) -> None: ...
    def get(self, img: NDArray[np.uint8]) -> list[Face]: ...
