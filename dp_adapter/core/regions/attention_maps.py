"""Where the words of a prompt look: their share of the text attention, and the regions that it shows. [ours]

A region from attention is coarse, 16 x 16 to 32 x 32 cells, and how well it meets a face has not been measured with
real weights. So what is not clearly there is not said.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dp_adapter.core.attention import split_heads
from dp_adapter.core.regions.region_masks import grow_and_feather

_CONTRAST = 0.5  # of the peak, by which it must stand out from the darkest fifth; noise comes to about 0.4
_IN_BLOBS = 0.5  # of what is above the level, which must be in the people's blobs; noise has many blobs
_LEAST = 0.1  # of the largest blob: a smaller one is no further person
_HEAD = 1 / 3  # of a person's height: the head in a picture from the waist up


def word_share(q: Tensor, k: Tensor, words: Tensor, heads: int) -> Tensor:
    """Share of the text attention that goes to some tokens, mean over the heads.

    Args:
        q: [R, N, I]; k: [R, L, I], queries and keys of one site.
        words: [R, L], 1 at these tokens, else 0.

    Returns:
        [R, N] in [0, 1], float32.
    """
    q, k = split_heads(q, heads), split_heads(k, heads)
    attention = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1, dtype=torch.float32)  # [R, heads, N, L]
    return (attention @ words.float()[:, None, :, None]).mean(1)[..., 0]  # [R, N]


def find_regions(share: Tensor, people: int, quantile: float = 0.2, *, head: bool = False) -> list[Tensor | None]:
    """The regions of as many people, from left to right: blobs in which the smoothed map is above a level.

    The level is the larger of the map's top quantile and the middle between its peak and its darkest fifth.

    Args:
        share: [h, w] in [0, 1], of any scale.
        quantile: share of the cells that may be above the level.
        head: whether the words mean a face or head, whose blob is taken whole. A person's covers the body, of which
            the visually sensitive region is the upper end, see ``upper_end``.

    Returns:
        Per person [h, w] of zeros and ones; None for all where the map is flat or scattered, or has fewer blobs than
        people, since then it is not known who is where.
    """
    nowhere: list[Tensor | None] = [None] * people
    smooth = grow_and_feather(share, 0, max(1.0, min(share.shape) / 32))
    peak, dark, top = smooth.max(), smooth.quantile(0.2), smooth.quantile(1 - quantile)
    if not peak > 0 or peak - dark < _CONTRAST * peak:  # the first also when it is not a number
        return nowhere
    above = smooth >= torch.maximum(top, (peak + dark) / 2)
    blobs = components(above)[:people]
    cells = [blob.sum() for blob in blobs]
    if len(blobs) < people or cells[-1] < _LEAST * cells[0] or sum(cells) < _IN_BLOBS * above.sum():
        return nowhere
    ordered = sorted(blobs, key=lambda blob: blob.nonzero()[:, 1].float().mean().item())
    return [blob if head else upper_end(blob) for blob in ordered]


def components(mask: Tensor) -> list[Tensor]:
    """The connected blobs of a mask [h, w], over edges and corners, the largest first; each [h, w], zeros and ones."""
    marked = mask.float()
    labels = torch.arange(1.0, marked.numel() + 1).reshape(marked.shape) * marked
    while True:
        spread = F.max_pool2d(labels[None], 3, stride=1, padding=1)[0] * marked
        if torch.equal(spread, labels):
            break
        labels = spread
    blobs = [(labels == float(label)).float() for label in set(labels[labels > 0].numpy(force=True))]
    return sorted(blobs, key=lambda blob: -blob.sum().item())


def upper_end(body: Tensor) -> Tensor:
    """The part of a body [h, w] where its head is, for all that its shape tells.

    The top third of its box, as of a picture from the waist up, but no taller than the box is wide, as of a standing
    figure; and no wider than tall, around the middle of what is there.
    """
    ys, xs = body.nonzero(as_tuple=True)
    top, height, width = ys.min().item(), (ys.max() - ys.min() + 1).item(), (xs.max() - xs.min() + 1).item()
    tall = max(1, round(min(_HEAD * height, width)))
    above = torch.zeros_like(body)
    above[int(top) : int(top) + tall] = body[int(top) : int(top) + tall]
    columns = above.nonzero()[:, 1].float()
    near = (torch.arange(body.shape[1]) - columns.mean()).abs() <= tall / 2
    return above * near
