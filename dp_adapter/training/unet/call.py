"""What one forward of the adapted UNet tells its sites, and what they tell back.

It travels to the sites in ``cross_attention_kwargs``, not on the modules: gradient checkpointing runs a block again in
the backward, after other forwards with other conditions, and must find those of its own.

Shapes: B rows, N positions of a site's grid, T identity tokens, D token width, I inner channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from dp_adapter.core.regions.region_masks import on_grid
from dp_adapter.core.types import Grid

KEYWORD = "dp_adapter"

Record = Literal["fair", "localisation", "attention", "features"]


class Call:
    """One forward.

    No dataclass: FSDP copies those that enter a module with gradients in them (torch 2.13, ``replace_grad_tensors`` of
    ``torch.distributed.fsdp``), and what the sites tell would be lost in the copies.

    Attributes:
        tokens: [B, T, D]; None for the base model's own attention.
        masks: by number of halvings of the latent grid, [B, N, 1].
        acts: [B, 1, 1], whether a row has a region at all; where not, the extension leaves the row alone.
        text_on: [B, 1, 1], the text attention's factor; None for 1.
        progress: [B, 1, 1], 0 at pure noise and 1 at the finished picture.
        latent: grid of the latents.
        weight: strength s.
        record: what the sites are to put into ``fair`` and the rest, each by the site's index.
    """

    def __init__(
        self,
        *,
        tokens: Tensor | None,
        masks: Mapping[int, Tensor],
        acts: Tensor,
        text_on: Tensor | None,
        progress: Tensor,
        latent: Grid,
        weight: float,
        record: frozenset[Record],
    ) -> None:
        self.tokens, self.masks, self.acts, self.text_on = tokens, masks, acts, text_on
        self.progress, self.latent, self.weight, self.record = progress, latent, weight, record
        self.fair: dict[int, Tensor] = {}
        self.localisation: dict[int, Tensor] = {}
        self.shares: dict[int, Tensor] = {}
        self.features: dict[int, Tensor] = {}

    def spoken(self, z: Tensor) -> Tensor:
        """The text's attention [B, N, I] where it is on."""
        return z if self.text_on is None else z * self.text_on.to(z)


def masks_by_halvings(mask: Tensor, halvings: int) -> dict[int, Tensor]:
    """The mask [B, 1, h, w] of the latent grid on this and every coarser grid, as the extension makes it: [B, N, 1]."""
    latent = Grid(*mask.shape[-2:])
    return {times: on_grid(mask[:, 0], latent, times).flatten(1)[..., None] for times in range(halvings + 1)}
