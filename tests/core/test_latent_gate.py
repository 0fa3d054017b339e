"""The gate that sees a face in predicted latents."""

from __future__ import annotations

import pytest
import torch

from dp_adapter.core.latent_gate import LatentGate


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 20), (1, 1)])
@pytest.mark.parametrize("channels", [4, 16])
def test_a_share_for_each_cell_of_any_size(height: int, width: int, channels: int) -> None:
    gate = LatentGate(channels, 8)
    shares = gate(torch.randn(2, channels, height, width).half(), 0.3)
    assert shares.shape == (2, height, width) and shares.dtype == torch.float32
    assert bool(((shares > 0) & (shares < 1)).all())


def test_it_knows_how_far_the_picture_is_and_each_picture_is_its_own() -> None:
    gate, latents = LatentGate(), torch.randn(3, 4, 8, 8)
    assert not torch.equal(gate(latents, 0.1), gate(latents, 0.9))
    torch.testing.assert_close(gate(latents, 0.1)[1:2], gate(latents[1:2], 0.1))
    several = gate.logits(latents, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(several[2].sigmoid(), gate(latents, 0.9)[2:3])


def test_its_shapes_come_from_its_weights() -> None:
    gate = LatentGate(16, 8)
    again = LatentGate.like(gate.state_dict())
    again.load_state_dict(gate.state_dict())
    latents = torch.randn(1, 16, 4, 4)
    assert torch.equal(gate(latents, 0.5), again(latents, 0.5))
