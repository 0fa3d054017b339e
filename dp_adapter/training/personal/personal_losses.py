"""What personalising minimises: pure functions.

Sources: ID-EA (arXiv 2507.11990; Whslee/ID-EA@9481a95 ``train.py``), Break-A-Scene (arXiv 2305.16311, masked loss),
CoRe (arXiv 2408.15914, equations 3 and 4).
Shapes: B rows, k learned words, D width of the text context, h, w the latent grid, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RIDGE = 2e-5  # zeta of the released code, on the diagonal of a covariance of k samples in D dimensions


def denoising(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of predictions [B, 4, h, w]; with a mask [B, 1, h, w] in 0..1 its mean over the mask alone.

    Break-A-Scene's code averages over the whole grid, so that a small face counts little beside other losses; here over
    the mask's own cells.
    """
    error = (prediction.float() - target.float()).square()
    if mask is None:
        return error.mean()
    share = mask.expand_as(error)
    return (share * error).sum() / share.sum().clamp(min=1e-6)


def inverse_covariance(anchor: Tensor) -> Tensor:
    """Inverse covariance [D, D] of an anchor [k, D], k >= 2 (of one sample the ridge alone)."""
    wide = anchor.cpu().double()  # Apple GPUs have no double precision
    covariance = torch.cov(wide.T) if len(wide) > 1 else torch.zeros(wide.shape[1], wide.shape[1], dtype=wide.dtype)
    eye = torch.eye(wide.shape[1], dtype=wide.dtype)
    return torch.inverse(covariance + RIDGE * eye).to(anchor)


def mahalanobis(words: Tensor, anchor: Tensor, precision: Tensor) -> Tensor:
    """Mean Mahalanobis distance of words [k, D] to their anchors [k, D]; without a gradient where they coincide."""
    difference = words - anchor
    squared = ((difference @ precision) * difference).sum(-1)
    return squared.clamp(min=1e-8).sqrt().mean()


def context_embedding(learned: Tensor, plain: Tensor) -> Tensor:
    """CoRe's L_emb of the tokens around the word [L, D] in both: mean cosine distance."""
    return (1 - F.cosine_similarity(learned.float(), plain.float(), dim=-1)).mean()


def context_attention(learned: Tensor, plain: Tensor) -> Tensor:
    """CoRe's L_attn of the same tokens' mean attention over all sites [L]: mean squared difference."""
    return (learned - plain).square().mean()
