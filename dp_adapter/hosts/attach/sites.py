"""The text cross-attention sites of SD1.5 and SDXL, in checkpoint order, under the names of each host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


@dataclass(frozen=True)
class _Block:
    diffusers: str
    ldm: str
    level: Level
    halvings: int
    depth: int


def _blocks(base: Base) -> Iterator[_Block]:
    """Spatial transformers in registration order of diffusers' UNet: down, up, middle.

    Order of ``unet.attn_processors`` in diffusers 0.42.1 and of the blocks in ldm and sgm; see docs/formats.md.
    """
    if base == "sd15":
        for block in range(3):
            for i in range(2):
                yield _Block(
                    f"down_blocks.{block}.attentions.{i}", f"input_blocks.{3 * block + i + 1}.1", "down", block, 1
                )
        for block in range(1, 4):
            for i in range(3):
                yield _Block(
                    f"up_blocks.{block}.attentions.{i}", f"output_blocks.{3 * block + i}.1", "up", 3 - block, 1
                )
        yield _Block("mid_block.attentions.0", "middle_block.1", "middle", 3, 1)
    else:
        for block, depth in ((1, 2), (2, 10)):
            for i in range(2):
                path = f"down_blocks.{block}.attentions.{i}"
                yield _Block(path, f"input_blocks.{3 * block + i + 1}.1", "down", block, depth)
        for block, depth in ((0, 10), (1, 2)):
            for i in range(3):
                yield _Block(
                    f"up_blocks.{block}.attentions.{i}", f"output_blocks.{3 * block + i}.1", "up", 2 - block, depth
                )
        yield _Block("mid_block.attentions.0", "middle_block.1", "middle", 2, 10)


def site_names(base: Base) -> list[SiteName]:
    """All sites of a base model; place in the list is the site's index, key number in a checkpoint 2 * index + 1."""
    names: list[SiteName] = []
    for block in _blocks(base):
        for depth in range(block.depth):
            tail = f".transformer_blocks.{depth}"
            names.append(SiteName(len(names), block.diffusers + tail, block.ldm + tail, block.level, block.halvings))
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
