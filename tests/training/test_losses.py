"""The losses, with numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dp_adapter.training import losses

# Two rows of 1 x 2 cells and one channel; the left cell is the face.
MASK = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 0.0]]]])
ZERO = torch.zeros(2, 1, 1, 2)


def rows(*values: tuple[float, float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def test_masked_mse() -> None:
    pred = rows((1, 2), (3, 4))
    # (6 * 1 + 4 + 6 * 9 + 16) / 4; then the second row without its right cell
    assert losses.masked_mse(pred, ZERO, MASK).item() == 20
    assert losses.masked_mse(pred, ZERO, MASK, inside=0).item() == pytest.approx(30 / 4)
    assert losses.masked_mse(pred, ZERO, MASK, only_inside=torch.tensor([False, True])).item() == 16


def test_outside_mse() -> None:
    pred, target = rows((9, 1), (9, 2)).requires_grad_(), rows((0, 3), (0, 2)).requires_grad_()
    loss = losses.outside_mse(pred, target, MASK)
    assert loss.item() == 1  # (4 + 0) / 4
    loss.backward()
    assert pred.grad is not None and pred.grad[..., 0].abs().max() == 0 and pred.grad[..., 1].abs().max() > 0
    assert target.grad is None


def test_interpolated_identity() -> None:
    tokens = torch.tensor([0.0, 1.0, 3.0])[:, None, None].expand(3, 2, 4).clone().requires_grad_()
    mixed = losses.interpolated_identity(tokens, tokens.roll(1, 0), torch.Generator().manual_seed(0))
    assert not mixed.requires_grad and (mixed == mixed[:, :1, :1]).all()
    share = torch.stack([mixed[0, 0, 0] / 3, mixed[1, 0, 0], (mixed[2, 0, 0] - 1) / 2])  # [other, own, own]
    amount = torch.stack([1 - share[0], share[1], share[2]])
    assert (amount > 0.2).all() and (amount < 0.8).all() and amount.unique().numel() == 3
    one = losses.interpolated_identity(torch.zeros(1, 2, 4), torch.ones(1, 2, 4))
    assert 0.2 < one.min() < 0.8


def test_localisation() -> None:
    share = torch.tensor([[0.8, 0.2, 0.4, 0.0]])
    # outside (0.4 + 0) / 2, inside (0.8 + 0.2) / 2
    hard = losses.localisation(share, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert hard.item() == pytest.approx(-0.3, abs=1e-4)
    # with a half: outside (0.1 + 0.4) / 2.5, inside (0.8 + 0.1) / 1.5
    soft = losses.localisation(share, torch.tensor([[1.0, 0.5, 0.0, 0.0]]))
    assert soft.item() == pytest.approx(0.2 - 0.6, abs=1e-4)
    assert losses.localisation(share, torch.zeros(1, 4)).item() == pytest.approx(0.35, abs=1e-4)


def test_fair() -> None:
    term = torch.tensor([[[9.0, 9.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    hidden = torch.tensor([[[7.0, 7.0], [6.0, 8.0]], [[1.0, 1.0], [1.0, 1.0]]])
    mask = torch.tensor([[[1.0], [0.0]], [[1.0], [0.0]]])
    loss = losses.fair(term, hidden, mask)
    assert loss.item() == pytest.approx((5 / 10 + 0) / 2)
    loss.backward()
    assert term.grad is not None and term.grad.isfinite().all() and term.grad[:, 0].abs().max() == 0
    assert losses.fair(term, hidden, torch.ones(2, 2, 1)).item() == 0


def test_edit_direction() -> None:
    plain = torch.zeros(1, 2, 2)
    turned = torch.tensor([[[1.0, 1.0], [5.0, 0.0]]], requires_grad=True)
    straight = torch.tensor([[[2.0, 0.0], [0.0, 5.0]]])
    mask = torch.tensor([[[1.0], [0.0]]])
    # 45 degrees inside; the right angle outside does not count. The second site is the same twice.
    loss = losses.edit_direction([turned, straight], [plain, plain], [straight, straight], [plain, plain], [mask, mask])
    assert loss.item() == pytest.approx(1 - math.sqrt(0.5), abs=1e-4)
    loss.backward()
    assert turned.grad is not None and turned.grad.isfinite().all()


def test_story_mask() -> None:
    attention = torch.tensor([[[[0.75, 0.5]]]])
    # ((1/4)^2 + (1/2)^2) / 2, twice
    assert losses.story_mask(attention, MASK[:1]).item() == pytest.approx(2 * (1 / 16 + 1 / 4) / 2)
    assert losses.story_mask(torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 4, 4), 0.5)).item() == 0


def test_clean_latents_undo_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 4, 3, 3, generator=generator)
    alphas, timesteps = torch.linspace(0.99, 0.01, 1000), torch.tensor([0, 700])
    alpha = alphas[timesteps][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(losses.clean_latents(noisy, noise, alphas, timesteps), clean, atol=1e-5, rtol=1e-5)


def test_identity_loss() -> None:
    seen = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], requires_grad=True)
    wanted = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    timesteps = torch.tensor([10, 250, 251])
    loss = losses.identity_loss(seen, wanted, timesteps)
    assert loss.item() == pytest.approx((0 + 1 - math.sqrt(0.5)) / 2)
    loss.backward()
    assert seen.grad is not None and seen.grad[2].abs().max() == 0 and seen.grad[1].abs().max() > 0
    assert losses.identity_loss(seen, wanted, torch.tensor([900, 900, 900])).item() == 0
