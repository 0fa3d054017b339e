"""The words' share of the text attention, and the regions that are read from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dp_adapter.core.regions.attention_maps import components, find_regions, upper_end, word_share


def blobs(*places: tuple[float, float, float], size: tuple[int, int] = (32, 32)) -> Tensor:
    """Bumps at (y, x) with a radius, all as fractions, over a low floor."""
    y, x = (torch.linspace(0.5 / n, 1 - 0.5 / n, n) for n in size)
    bumps = [torch.exp(-((y[:, None] - a) ** 2 + (x[None] - b) ** 2) / (2 * r**2)) for a, b, r in places]
    return 0.1 + 0.9 * torch.stack(bumps).amax(0)


def where(mask: Tensor | None) -> tuple[float, float]:
    """The middle of a region, as fractions (y, x)."""
    assert mask is not None
    y, x = mask.nonzero().float().mean(0) + 0.5
    return y.item() / mask.shape[0], x.item() / mask.shape[1]


def test_share_is_the_softmax_over_all_tokens_head_by_head() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 6, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    words = torch.tensor([[0.0, 1, 0, 0, 1], [0, 0, 0, 1, 0]])
    share = word_share(q, k, words, heads=2)
    for row, tokens in enumerate(([1, 4], [3])):
        heads: list[Tensor] = []
        for part in (slice(0, 4), slice(4, 8)):
            attention = torch.softmax(q[row, :, part] @ k[row, :, part].T / 2, -1)
            heads.append(attention[:, tokens].sum(-1))
        torch.testing.assert_close(share[row], torch.stack(heads).mean(0))
    assert torch.allclose(word_share(q, k, torch.ones(2, 5), 2), torch.ones(2, 6))
    half = word_share(q.bfloat16(), k.bfloat16(), words, heads=2)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, share, atol=0.02, rtol=0.1)


def test_a_face_word_gives_the_bright_place_whole() -> None:
    (region,) = find_regions(blobs((0.3, 0.7, 0.1)), people=1, head=True)
    assert where(region) == pytest.approx((0.3, 0.7), abs=0.04)
    assert region is not None
    assert set(region.unique().tolist()) == {0.0, 1.0}
    assert 0 < region.mean() <= 0.2


def test_no_more_than_the_quantile() -> None:
    wide = blobs((0.5, 0.5, 0.35))
    for quantile in (0.05, 0.1, 0.2):
        (region,) = find_regions(wide, 1, quantile, head=True)
        assert region is not None
        assert region.mean() == pytest.approx(quantile, abs=0.02)


def test_scale_does_not_matter() -> None:
    share = blobs((0.4, 0.4, 0.1))
    (one,), (other,) = find_regions(share, 1), find_regions(share * 0.01, 1)
    assert one is not None and other is not None
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "share",
    [
        torch.zeros(16, 16),
        torch.full((16, 16), 0.7),
        torch.full((16, 16), float("nan")),
        torch.linspace(0.6, 1, 16).expand(16, 16),
        *(torch.rand(size, size, generator=torch.Generator().manual_seed(size)) for size in (16, 24, 32)),
    ],
    ids=["zero", "one value", "not a number", "a slope", "noise 16", "noise 24", "noise 32"],
)
def test_a_flat_map_says_nothing(share: Tensor) -> None:
    assert find_regions(share, 1) == [None]
    assert find_regions(share, 2) == [None, None]


def test_two_people_from_left_to_right() -> None:
    regions = find_regions(blobs((0.4, 0.75, 0.09), (0.5, 0.2, 0.08)), 2, head=True)
    assert [where(one) for one in regions] == [pytest.approx(p, abs=0.04) for p in ((0.5, 0.2), (0.4, 0.75))]


def test_one_of_two_people_takes_the_larger_place() -> None:
    (region,) = find_regions(blobs((0.4, 0.75, 0.1), (0.5, 0.2, 0.06)), 1, head=True)
    assert where(region) == pytest.approx((0.4, 0.75), abs=0.04)


def test_fewer_places_than_people_say_nothing() -> None:
    """Who of the two it would be is not known."""
    assert find_regions(blobs((0.5, 0.5, 0.1)), 2) == [None, None]
    speck = blobs((0.5, 0.3, 0.12))
    speck[28, 28] = 1.0
    assert find_regions(speck, 2) == [None, None]


def test_a_person_word_gives_the_upper_end() -> None:
    standing = 0.05 + torch.zeros(32, 32)
    standing[4:30, 12:18] = 1.0
    (region,) = find_regions(standing, 1)
    assert region is not None
    ys, xs = region.nonzero(as_tuple=True)
    assert (ys.min().item(), ys.max().item()) == (4, 9), "as tall as the figure is wide"
    assert (xs.min().item(), xs.max().item()) == (12, 17)


def test_the_upper_end_of_bodies() -> None:
    wide = torch.zeros(16, 16)
    wide[4:16, 8:12] = 1.0  # the head stands above shoulders
    wide[8:16, 4:16] = 1.0
    upper = torch.zeros(16, 16)
    upper[4:8, 8:12] = 1.0
    assert torch.equal(upper_end(wide), upper)
    speck = torch.zeros(16, 16)
    speck[3, 5] = 1.0
    assert torch.equal(upper_end(speck), speck)


def test_pieces_hang_together_over_corners() -> None:
    mask = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    first, second, third = components(mask.bool())
    assert torch.equal(first + second + third, mask)
    assert [piece.sum().item() for piece in (first, second, third)] == [2, 2, 1]
    assert components(torch.zeros(3, 3)) == []
    snake = torch.ones(9, 9)
    snake[1::4, :-1] = 0
    snake[3::4, 1:] = 0
    assert len(components(snake)) == 1
