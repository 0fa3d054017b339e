"""TransFace's vision transformer (Dan et al., ICCV 2023), as far as its patch features go.

Source: modelscope/facechain@7bc7119 ``face_adapter/vit.py``, which is DanJun6737/TransFace@fb6cd56 ``backbones/vit.py``
with the patch features handed out. Parameter names are theirs. What follows the patches in a file (``feature``,
``senet``, ``mask_token``) serves recognition and training, and is left out: 49 of its 87 million numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

HEADS = 8  # of TransFace-S, -B and -L
SIDE = 112  # px
_UNUSED = ("feature.", "senet.", "mask_token")


class TransFaceNet(nn.Module):
    """Pixels [n, 3, 112, 112] in -1..1 -> patch features [n, L, c]; 144 x 512 in TransFace-S.

    Args:
        width: c; hidden: of the feed-forward layers; patch: side of a patch in px.
    """

    def __init__(self, width: int, depth: int, hidden: int, patch: int) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        self.patches = (SIDE // patch) ** 2
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patches, width))
        self.blocks = nn.ModuleList([_Block(width, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> TransFaceNet:
        """The network whose parameters have these shapes. Raises KeyError or ValueError where there is none."""
        width, channels, patch, _ = state["patch_embed.proj.weight"].shape
        depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        patches = state["pos_embed"].shape[1]
        if channels != 3 or width % HEADS or (SIDE // patch) ** 2 != patches:
            raise ValueError(f"{patches} patches of {patch} px at width {width}")
        return cls(width, depth, hidden, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)  # [n, L, c]
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width, bias=False), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # [n, H, L, d]
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [n, L, c]
        x = x + self.attn["proj"](attended)
        return x + self.mlp["fc2"](nn.functional.relu6(self.mlp["fc1"](self.norm2(x))))


def patch_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file that the patch features need."""
    return {key: value for key, value in tensors.items() if not key.startswith(_UNUSED)}
