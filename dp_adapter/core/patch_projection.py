"""The projection of FaceChain-FACT's first version, module names as in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class PatchProjection(nn.Module):
    """TransFace patch features [n, L, c] -> [n, T, D]: mixed over the patches, then widened.

    Source: modelscope/facechain@9de7836 (branch dev/facechain_fact_improve)
    ``facechain_adapter/face_adapter/face_adapter.py``, ``Face_Prj_wofc``.
    """

    def __init__(self, patches: int, tokens: int, width: int, context: int) -> None:
        super().__init__()
        self.patches, self.tokens, self.width = patches, tokens, width
        self.net = nn.Linear(patches, tokens)
        self.feature = nn.Sequential(nn.Linear(width, context, bias=False), nn.BatchNorm1d(tokens))

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> PatchProjection:
        tokens, patches = state["net.weight"].shape
        context, width = state["feature.0.weight"].shape
        return cls(patches, tokens, width, context)

    def forward(self, patches: Tensor) -> Tensor:
        return self.feature(self.net(patches.transpose(1, 2)).transpose(1, 2))  # [n, T, D]
