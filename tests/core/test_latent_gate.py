"""The gate that sees a face in predicted latents."""

from __future__ import annotations

import pytest
import torch

from dp_adapter.core.latent_gate import LatentGate, Middle, choose_face


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


def faces(*middles: tuple[int, int]) -> torch.Tensor:
    share = torch.full((16, 16), 0.2)
    for row, column in middles:
        share[row - 1 : row + 2, column - 1 : column + 2] = 0.95
    return share


def chosen(share: torch.Tensor, last: Middle | None) -> tuple[torch.Tensor, Middle]:
    found = choose_face(share, last)
    assert found is not None
    return found


def test_of_several_faces_one_is_followed() -> None:
    both = faces((5, 3), (5, 11))
    left, middle = chosen(both, None)
    assert middle == (5, 3) and left[5, 3] == 1 and left[5, 11] == 0, "at first the leftmost"
    right, middle = chosen(both, (6, 10))
    assert middle == (5, 11) and right[5, 11] == 1 and right[5, 3] == 0
    assert torch.equal(left + right, (both > 0.5).float()), "each cell is one face's; where none is likely, nobody's"


def test_a_face_has_soft_edges_and_a_cell_is_none() -> None:
    share = faces((5, 3))
    share[5, 5], share[12, 12] = 0.5, 0.6
    kept, middle = chosen(share, None)
    assert float(kept[5, 5]) == pytest.approx(0.5) and kept[5, 3] == 1
    assert abs(middle[0] - 5) < 0.5 and middle[1] < 4, "a cell far off is no further face"


@pytest.mark.parametrize("last", [None, (2.0, 2.0)])
def test_where_no_face_shows_nothing_is_said(last: Middle | None) -> None:
    assert choose_face(torch.full((16, 16), 0.45), last) is None
