"""Projection networks take their sizes from a state dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core import projection as p
from tests import tiny

N = 3


def state(family: str, tokens: int = 4) -> Mapping[str, Tensor]:
    return {key: value.float() for key, value in tiny.family_tensors(family, tokens=tokens)["image_proj"].items()}


CASES: Mapping[str, tuple[str, Callable[..., nn.Module], tuple[tuple[int, ...], ...], int]] = {
    "image": ("ip-adapter", p.ImageProjection.like, ((N, tiny.CLIP),), 7),
    "full": ("ip-adapter-full-face", p.FullProjection.like, ((N, 257, tiny.CLIP),), 257),
    "face": ("faceid", p.FaceProjection.like, ((N, tiny.FACE),), 5),
    "resampler": ("ip-adapter-plus", p.Resampler.like, ((N, 257, tiny.CLIP),), 9),
    "sequence": ("faceid-sequence", p.Resampler.like, ((N, 2, 512),), 16),
    "face plus": ("faceid-plus", p.FacePlusProjection.like, ((N, tiny.FACE), (N, 20, tiny.CLIP)), 6),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes(case: str) -> None:
    family, like, inputs, tokens = CASES[case]
    weights = state(family, tokens)
    net = like(weights)
    net.load_state_dict(weights)
    assert {key: value.shape for key, value in net.state_dict().items()} == {k: v.shape for k, v in weights.items()}
    features = [torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in inputs]
    extra = {"shortcut": True} if case == "face plus" else {}
    with torch.no_grad():
        out = net(*features, **extra)
        alone = net(*(x[1:2] for x in features), **extra)
    assert out.shape == (N, tokens, tiny.CONTEXT)
    torch.testing.assert_close(out[1:2], alone, atol=1e-5, rtol=1e-4)  # photos do not see each other


def test_a_resampler_reads_its_whole_sequence() -> None:
    weights = state("faceid-sequence")
    net = p.Resampler.like(weights)
    net.load_state_dict(weights)
    x = torch.randn(1, 3, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, shuffled, part = net(x), net(x[:, [2, 0, 1]]), net(x[:, :2])
    torch.testing.assert_close(whole, shuffled, atol=1e-5, rtol=1e-4)
    assert (whole - part).abs().max() > 1e-3
