"""The text cross-attention sites of SD1.5 and SDXL, in checkpoint order, under the names of each host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dp_adapter.core.types import Level
from dp_adapter.errors import HostError

Base = Literal["sd15", "sdxl"]
SUPPORTED = "DP-Adapter works in SD1.5 and SDXL models; SD2, SD3, Flux and refiners are not supported."


@dataclass(frozen=True)
class SiteName:
    """One transformer block.

    Attributes:
        diffusers, ldm: path of the transformer block that holds attn1 and attn2.
        halvings: how often the latent grid is halved there.
    """

    index: int
    diffusers: str
    ldm: str
    level: Level
    halvings: int


# Block and depth of its spatial transformers on the way down and up; the middle's halvings and depth.
_LAYOUT: Mapping[Base, tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]], int, int]] = {
    "sd15": (((0, 1), (1, 1), (2, 1)), ((1, 1), (2, 1), (3, 1)), 3, 1),
    "sdxl": (((1, 2), (2, 10)), ((0, 10), (1, 2)), 2, 10),
}


def _transformers(base: Base) -> Iterator[tuple[str, str, Level, int, int]]:
    """Spatial transformers in registration order of diffusers' UNet (down, up, middle): as ``SiteName``, and how deep.

    Order of ``unet.attn_processors`` in diffusers 0.42.1 and of the blocks in ldm and sgm; see docs/formats.md.
    """
    down, up, deepest, middle = _LAYOUT[base]
    for block, depth in down:
        for i in range(2):
            yield f"down_blocks.{block}.attentions.{i}", f"input_blocks.{3 * block + i + 1}.1", "down", block, depth
    for block, depth in up:
        for i in range(3):
            ldm = f"output_blocks.{3 * block + i}.1"
            yield f"up_blocks.{block}.attentions.{i}", ldm, "up", deepest - block, depth
    yield "mid_block.attentions.0", "middle_block.1", "middle", deepest, middle


def site_names(base: Base) -> list[SiteName]:
    """All sites of a base model; place in the list is the site's index, key number in a checkpoint 2 * index + 1."""
    names: list[SiteName] = []
    for diffusers, ldm, level, halvings, depth in _transformers(base):
        for number in range(depth):
            tail = f".transformer_blocks.{number}"
            names.append(SiteName(len(names), diffusers + tail, ldm + tail, level, halvings))
    return names


def base_of_paths(paths: Iterable[str], name: Callable[[SiteName], str]) -> Base:
    """Which base model has these modules, by the layout of its cross-attention blocks.

    ``torch.compile`` of a module inside adds a name to the paths below it, by which modules are not looked up.

    Args:
        paths: of all modules of a UNet; name: a site's path in the UNet's naming.

    Raises:
        HostError: neither SD1.5 nor SDXL.
    """
    blocks = {path.replace("_orig_mod.", "").removesuffix(".attn2") for path in paths if path.endswith(".attn2")}
    for base in ("sd15", "sdxl"):
        if {name(site) for site in site_names(base)} == blocks:
            return base
    raise HostError(f"This model has {len(blocks)} cross-attention blocks in an unknown layout", SUPPORTED)
