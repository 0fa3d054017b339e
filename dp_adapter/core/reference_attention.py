"""Self-attention that also attends to the persons' photos, inside their regions.

Shapes: R rows, N positions, I inner channels, n positions inside a region, t tokens inside a photo's mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dp_adapter.core.attention import attend
from dp_adapter.core.injection import Injection
from dp_adapter.core.reference_photo import ReferencePhoto
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.types import Site, Step
from dp_adapter.errors import HostError


class ReferenceSelfAttention:
    """The photos of one generation at all sites."""

    def __init__(self, injection: Injection, cache: RegionCache) -> None:
        self._references = tuple(identity.reference for identity in injection.identities)
        self._shared = injection.by_words
        self._cache = cache
        self._tokens: dict[object, Tensor | None] = {}

    def of(self, number: int) -> ReferencePhoto:
        """The photo of identity ``number``, which has one."""
        reference = self._references[number]
        assert reference is not None
        return reference

    def acting(self, step: Step) -> tuple[int, ...]:
        """The identities whose photos act in a call, by number."""
        if all(row.kind == "text" for row in step.rows):
            return ()
        pairs = enumerate(self._references)
        return tuple(number for number, one in pairs if one is not None and one.at(step.progress))

    def looks(self, site: Site) -> bool:
        """Whether any photo ever acts at a site."""
        return any(one is not None and one.ever_active and site.level in one.levels for one in self._references)

    def attend(self, site: Site, step: Step, q: Tensor, k: Tensor, v: Tensor, z: Tensor) -> Tensor:
        """The self-attention before W_o, [R, N, I]: z + sum over persons of G w (Attn(q, [k; k_ref], [v; v_ref]) - z).

        W_o is linear, so that this is the lerp of the layer's outputs.

        Args:
            q, k, v, z: [R, N, I], what the layer computed.

        Raises:
            HostError: an extension changed rows or positions inside the layer.
        """
        _require_shape(site, step, q, k, v, z)
        out = z.clone()
        regions = self._cache.row_regions(site, step, z)
        first, numbers = len(step.rows) - len(step.references), tuple(dict.fromkeys(step.references))
        for number in numbers:
            reference = self.of(number)
            if site.level not in reference.levels:
                continue
            weight = reference.at(step.progress)
            if self._shared:  # their words divide the text attention only, so here their regions may overlap
                weight /= len(numbers)
            row, tokens = first + step.references.index(number), self._tokens_on_grid(number, site, step, z.device)
            k_ref, v_ref = (x[row] if tokens is None else x[row, tokens] for x in (k, v))  # [t, I]
            for region in regions[number]:
                positions = slice(None) if region.positions is None else region.positions
                keys, values = torch.cat([k[region.row], k_ref]), torch.cat([v[region.row], v_ref])  # [N + t, I]
                seen = attend(q[region.row, positions], keys, values, site.heads)  # [n, I]
                gain = weight if region.gain is None else weight * region.gain
                out[region.row, positions] += gain * (seen - z[region.row, positions])
        return out

    def _tokens_on_grid(self, number: int, site: Site, step: Step, device: torch.device) -> Tensor | None:
        key = (number, step.latent, site.halvings, device)
        if key not in self._tokens:
            tokens = self.of(number).tokens(step.latent, site.halvings)
            self._tokens[key] = None if tokens is None else tokens.to(device)
        return self._tokens[key]


def _require_shape(site: Site, step: Step, *seen: Tensor) -> None:
    wanted = (len(step.rows), len(step.latent.halved(site.halvings)))
    for one in seen:
        if tuple(one.shape[:-1]) != wanted:
            raise HostError(
                f"Inside the self-attention at {site.name} there are {' x '.join(map(str, one.shape[:-1]))} positions "
                f"instead of {wanted[0]} rows of {wanted[1]}",
                "Another extension merges tokens, cuts the picture into tiles (HyperTile) or adds a picture of its own "
                "there (ControlNet's reference): switch it off, or the photo attention.",
            )
