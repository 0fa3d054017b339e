"""The losses of method.md's Training section, as pure functions in float32.

Shapes: B rows, h x w cells of the latent grid, N positions of a site's grid, T identity tokens, D token width,
I inner channels, e width of a face embedding. Masks are the visually sensitive region, 1 in the face.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

EDIT_TIMESTEPS, EDIT_EVERY = (100, 350), 2
"""Range of timesteps at which the editing direction is taken, and in every how many steps (MasterWeaver)."""

IDENTITY_TIMESTEP = 250
"""The last timestep at which the predicted picture shows a face to compare (PortraitBooth, StoryMaker)."""

_COUNT = 1e-5  # keeps means over empty regions finite, as in FastComposer


def masked_mse(
    pred: Tensor, target: Tensor, mask: Tensor, inside: float = 5.0, only_inside: Tensor | None = None
) -> Tensor:
    """(1 + inside M) MSE, mean over all values; in some rows only what is inside M counts.

    Source: RedAIGC/StoryMaker@a7ce766 ``train_storymaker.py`` (``mask_loss_weight`` 5); only inside, for half of the
    batches there and for single rows here: mit-han-lab/fastcomposer@3d17e84 ``fastcomposer/model.py``.

    Args:
        pred, target: [B, 4, h, w]; mask: [B, 1, h, w]; only_inside: [B] bool.
    """
    weight = 1 + inside * mask.float()
    if only_inside is not None:
        weight = torch.where(only_inside[:, None, None, None], weight * mask.float(), weight)
    return (weight * (pred.float() - target.float()).square()).mean()


def outside_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """||(1 - M)(a - b)||^2, mean over all values: TCA's terms. ``target`` gets no gradient.

    Source of the last use (two identities must not differ outside the face): csyxwei/MasterWeaver@a77535c
    ``train_masterweaver_stage2.py``, ``loss_bg``.
    """
    return ((1 - mask.float()) * (pred.float() - target.detach().float())).square().mean()


def interpolated_identity(tokens: Tensor, others: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """c'_id = l c_id + (1 - l) another's, l ~ U(0.2, 0.8) by row: [B, T, D]; no gradient.

    Source: csyxwei/MasterWeaver@a77535c ``train_masterweaver_stage2.py``, ``aug_lambda``.

    Args:
        tokens: [B, T, D]; others: likewise, of other people.
    """
    amount = torch.rand(len(tokens), 1, 1, generator=generator, device=tokens.device) * 0.6 + 0.2
    return (amount * tokens + (1 - amount) * others).detach()


def localisation(share: Tensor, mask: Tensor) -> Tensor:
    """L_loc of one site: mean attention to the identity outside M minus inside, mean over rows.

    Source: ``BalancedL1Loss`` of mit-han-lab/fastcomposer@3d17e84 ``fastcomposer/model.py`` (arXiv 2305.10431), there
    on a word's attention.

    Args:
        share: [B, N], how much each position looks at the identity; mask: [B, N] on the same grid.
    """
    inside, outside = mask.float(), 1 - mask.float()
    return (_mean_over(share.float(), outside) - _mean_over(share.float(), inside)).mean()


def _mean_over(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum(-1) / (weights.sum(-1) + _COUNT)


def fair(term: Tensor, hidden_states: Tensor, mask: Tensor) -> Tensor:
    """L_FAIR of one site: ||term (1 - M)|| / ||h (1 - M)||, mean over rows (Face Adapting Incremental Regularization).

    Source: arXiv 2410.12312; modelscope/facechain@7bc7119 ``resources/FAIR.png``. The code that trained it is not
    public, so whether its norms are over rows or over the batch is not known; here they are over rows.

    Args:
        term: [B, N, I], what the identity adds; hidden_states: [B, N, C], what it is added to or made from;
            mask: [B, N, 1].
    """
    outside = 1 - mask.float()
    changed, present = _norm(term.float() * outside), _norm(hidden_states.float() * outside)
    return (changed / present.clamp(min=_COUNT)).mean()


def _norm(x: Tensor) -> Tensor:
    """[B, N, C] -> [B]; its gradient at 0 is 0."""
    return cast(Tensor, torch.linalg.vector_norm(x, dim=(1, 2)))  # pyright: ignore[reportUnknownMemberType]


def edit_direction(
    edited: Sequence[Tensor],
    plain: Sequence[Tensor],
    edited_base: Sequence[Tensor],
    plain_base: Sequence[Tensor],
    masks: Sequence[Tensor],
) -> Tensor:
    """L_edit: 1 - cos of the editing directions with identity and of the base model, mean inside M, summed over sites.

    Source: csyxwei/MasterWeaver@a77535c ``train_masterweaver_stage2.py``, ``loss_edit``: text attention before W_o in
    the first up block that has any, timesteps in [100, 350), every second step.

    Args:
        edited, plain: [B, N, I] a site, features with the edit prompt and with the plain one; ``_base``: of the model
            without identity, which get no gradient; masks: [B, N, 1] a site.
    """
    total = torch.zeros((), device=edited[0].device)
    for with_edit, without, base_edit, base_plain, mask in zip(
        edited, plain, edited_base, plain_base, masks, strict=True
    ):
        inside = mask.float()[..., 0]
        direction = with_edit.float() - without.float()
        base = (base_edit.float() - base_plain.float()).detach()
        # There, features are set to 0 outside, where 1 - cos is then 1: a constant that only says how large M is.
        apart = (1 - F.cosine_similarity(direction, base, dim=-1)) * inside
        total = total + apart.sum() / (inside.sum() + _COUNT)
    return total


def story_mask(attention: Tensor, mask: Tensor) -> Tensor:
    """StoryMaker's mask loss: MSE of the attention to the identity and M, plus that of the rest and 1 - M.

    Source: RedAIGC/StoryMaker@a7ce766 ``train_storymaker.py``, ``get_loss_ip``. There the rest is attention to tokens
    of the background, which the identity's do not have here; it is the text's share, so both terms are equal.

    Args:
        attention: [B, 1, h', w'] in 0..1, mean over sites; mask: [B, 1, h, w], resized to it.
    """
    resized = F.interpolate(mask.float(), attention.shape[-2:], mode="bilinear")
    person = (attention.float() - resized).square().mean()
    background = ((1 - attention.float()) - (1 - resized)).square().mean()
    return person + background


def noisy_latents(clean: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """x_t of clean latents (DDPM, arXiv 2006.11239, eq. 4): [B, 4, h, w]; the arguments as of ``clean_latents``."""
    alpha = alphas_cumprod[timesteps][:, None, None, None]
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def clean_latents(noisy: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """x0 of a predicted noise (DDPM, arXiv 2006.11239, eq. 15): [B, 4, h, w].

    Args:
        alphas_cumprod: [1000] of the schedule; timesteps: [B].
    """
    alpha = alphas_cumprod.to(noisy.device)[timesteps].float()[:, None, None, None]
    return (noisy.float() - (1 - alpha).sqrt() * noise.float()) / alpha.sqrt()


def identity_loss(embeddings: Tensor, references: Tensor, timesteps: Tensor) -> Tensor:
    """L_id: 1 - cos of face embeddings, mean over the rows with t <= 250; 0 where there are none.

    Source: arXiv 2312.06354 (PortraitBooth); RedAIGC/StoryMaker@a7ce766 ``train_storymaker.py``, ``get_loss_faceid``.

    Args:
        embeddings: [B, e] of the faces in decoded ``clean_latents``; references: [B, e], of the target pictures, which
            get no gradient; timesteps: [B].
    """
    counts = (timesteps <= IDENTITY_TIMESTEP).float()
    apart = 1 - F.cosine_similarity(embeddings.float(), references.detach().float(), dim=-1)
    return (apart * counts).sum() / counts.sum().clamp(min=1)
