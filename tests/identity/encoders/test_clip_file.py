"""Containers and namings in which CLIP towers are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dp_adapter.errors import WeightsError
from dp_adapter.identity.encoders.clip import ClipVision, preprocess
from tests.identity.encoders.test_encoder_pool import save_tower

pytest.importorskip("transformers")
CROP = np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8)


class OpenClip(nn.Module):
    """OpenCLIP's vision tower as mlfoundations/open_clip names and runs it, on torch's own attention."""

    def __init__(self, width: int, layers: int, heads: int, projection: int, activation: nn.Module) -> None:
        super().__init__()
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, 14, stride=14, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(5, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList([_Block(width, heads, activation) for _ in range(layers)])}
        )
        self.proj = nn.Parameter(scale * torch.randn(width, projection))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Image embedding [1, P], and what the last block is given [1, 5, W]."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        blocks: Any = self.transformer["resblocks"]
        for block in blocks[:-1]:
            x = block(x)
        return self.ln_post(blocks[-1](x)[:, 0]) @ self.proj, x


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 2 * width), "c_proj": nn.Linear(2 * width, width)})
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp["c_proj"](self._activation(self.mlp["c_fc"](self.ln_2(x))))


class _QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize(("width", "heads", "activation"), [(1088, 16, nn.GELU()), (128, 2, _QuickGelu())])
@pytest.mark.parametrize("container", ["safetensors", "pth"])
def test_openclip_files(tmp_path: Path, width: int, heads: int, activation: nn.Module, container: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = OpenClip(width, 2, heads, 24, activation).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    tensors = {f"visual.{key}": value.detach() for key, value in model.state_dict().items()}
    tensors |= {"transformer.resblocks.0.ln_1.weight": torch.ones(3), "logit_scale": torch.ones(1)}
    path = tmp_path / f"clip.{container}"
    if container == "pth":
        torch.save(tensors, path)
    else:
        save_file({key: value.contiguous() for key, value in tensors.items()}, str(path))
    tower = ClipVision(path)
    assert (tower.shape.hidden_size, tower.dim, tower.shape.image_size) == (width, 24, 28)
    features = tower.encode(CROP)
    with torch.no_grad():
        embeds, hidden = model(torch.tensor(preprocess(CROP, 28)))
    torch.testing.assert_close(features.image_embeds, embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.hidden, hidden, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_in_transformers_naming(tmp_path: Path, zipped: bool) -> None:
    """As sd-webui-controlnet keeps them: transformers' pytorch_model.bin, called clip_h.pth."""
    from safetensors.torch import load_file

    folder = save_tower(tmp_path / "tower", 32, 24)
    expected = ClipVision(folder).encode(CROP)
    tensors = load_file(str(folder / "model.safetensors"))
    extra = {"text_model.x": torch.ones(1), "vision_model.embeddings.position_ids": torch.arange(5)[None]}
    torch.save({**tensors, **extra}, tmp_path / "clip_h.pth", _use_new_zipfile_serialization=zipped)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    for path in (tmp_path / "clip_h.pth", folder):
        made = ClipVision(path).encode(CROP)
        # without a config the heads are told by the width, which narrow towers of one head agree with
        # not to the bit: kernels of some processors sum in another order where numbers of a mapped file are not aligned
        torch.testing.assert_close(made.hidden, expected.hidden, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(made.image_embeds, expected.image_embeds, atol=1e-5, rtol=1e-5)


def test_code_is_not_run(tmp_path: Path) -> None:
    import os
    import pickle

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "clip.pth").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(WeightsError, match=r"clip\.pth"):
        ClipVision(tmp_path / "clip.pth")
    assert not (tmp_path / "harm").exists()
