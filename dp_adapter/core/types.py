"""One call of the UNet in plain types: sites, steps, rows, tokens, features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Level = Literal["down", "middle", "up"]
RowKind = Literal["cond", "uncond", "text"]
BlendMode = Literal["add", "orthogonal", "orthogonal_v2", "norm", "adain_mean", "gated", "text_query"]


@dataclass(frozen=True)
class Grid:
    """Height and width of a feature map, in cells."""

    height: int
    width: int

    def __len__(self) -> int:
        return self.height * self.width

    def halved(self, times: int) -> Grid:
        """The grid after ``times`` stride-2 convolutions with padding 1: each side halves, rounding up."""
        height, width = self.height, self.width
        for _ in range(times):
            height, width = (height + 1) // 2, (width + 1) // 2
        return Grid(height, width)


@dataclass(frozen=True)
class Site:
    """One text cross-attention layer (attn2) of a UNet.

    Attributes:
        index: number in checkpoint order (down, up, middle), counted over attn2 only; the key number in an
            IP-Adapter file is ``2 * index + 1``.
        name: module path of the transformer block in diffusers' naming.
        halvings: how often the latent grid is halved to reach this site's grid.
        channels: width C of the hidden states.
        heads: number of attention heads.
    """

    index: int
    name: str
    level: Level
    halvings: int
    channels: int
    heads: int


@dataclass(frozen=True)
class Row:
    """One element of the UNet's batch, as the host describes it.

    Attributes:
        kind: ``cond`` and ``uncond`` get their identity tokens, ``text`` gets none.
        sample: which picture of the batch the row belongs to.
        part: which of the picture's prompts a conditional row has, where AND joins several; None where the host does
            not say, or where it has none of them, but a text of an extension's own.
    """

    kind: RowKind
    sample: int = 0
    part: int | None = 0


@dataclass(frozen=True)
class TileBox:
    """The part of a picture that a row shows, where another extension samples in tiles; in cells of the latents.

    Attributes:
        top, left: where its first cell lies in the whole picture.
        size: of the tile; whole: of the whole picture.
    """

    top: int
    left: int
    size: Grid
    whole: Grid


@dataclass(frozen=True)
class Step:
    """One call of the UNet.

    Attributes:
        progress: 0 at pure noise, 1 at the finished picture, measured on the noise level (not on the step count).
        rows: one entry per batch element, in the batch's order.
        latent: size of the latents.
        tiles: what part of its picture each row shows; None where every row shows a whole one.
        twins: of the rows behind those that the host called with, the numbers of the rows that they repeat.
        references: of the last rows, which show photos, the identities whose photos these are, by number.
    """

    progress: float
    rows: tuple[Row, ...]
    latent: Grid
    tiles: tuple[TileBox, ...] | None = None
    twins: tuple[int, ...] = ()
    references: tuple[int, ...] = ()

    def conditional(self) -> Step:
        """The same call, in which the identities act in conditional rows only."""
        rows = tuple(replace(row, kind="text") if row.kind == "uncond" else row for row in self.rows)
        return replace(self, rows=rows)

    def twinned(self) -> Step:
        """The rows in which identities act once more behind all others, without identity."""
        twins = tuple(number for number, row in enumerate(self.rows) if row.kind != "text")
        rows = tuple(Row("text", self.rows[number].sample) for number in twins)
        tiles = None if self.tiles is None else (*self.tiles, *(self.tiles[number] for number in twins))
        return replace(self, rows=self.rows + rows, tiles=tiles, twins=twins)

    def with_references(self, numbers: tuple[int, ...]) -> Step:
        """The same rows with these identities' photos behind them, one row each."""
        return replace(self, rows=self.rows + (Row("text"),) * len(numbers), references=numbers)

    def without_references(self) -> Step:
        return replace(self, rows=self.rows[: len(self.rows) - len(self.references)], references=())


@dataclass(frozen=True)
class Captured:
    """What the host's own attention computed in one call.

    Attributes:
        q: [R, N, I]; z: [R, N, I], the text attention before W_o; k, v: [R, L, I]; context: [R, L, D].
    """

    q: Tensor
    z: Tensor
    k: Tensor
    v: Tensor
    context: Tensor


@dataclass(frozen=True)
class Tokens:
    """Identity tokens of one person, [T, D] each: for conditional and for unconditional rows."""

    cond: Tensor
    uncond: Tensor

    def of(self, kind: RowKind) -> Tensor:
        return self.cond if kind == "cond" else self.uncond


@dataclass(frozen=True)
class Features:
    """Encoder outputs of one person's photos; a checkpoint uses the fields that its family needs.

    Attributes:
        faceid: face embedding [n, e], or [n, L, e] where several faces form one sequence.
        image_embeds: CLIP image embedding [n, c].
        clip_hidden: CLIP's last but one hidden state [n, L, c].
        clip_hidden_uncond: the same of an all-zero pixel tensor, [1, L, c].
        clip_person: the last but one hidden state of the person cut out of the photo, [n, L, c].
        clip_parts: the same of the parts of the face, [n, P, L, c].
        eva_pooled: EVA02-CLIP's image embedding as it comes, [n, c].
        eva_hidden: its hidden states after five of its blocks, [n, 5, L, c].
        face_patches: TransFace patch features [n, L, c].
        id_embeds: what a vision tower inside the checkpoint makes of each photo, [n, T, D].
        w_plus: latents of StyleGAN2 [n, 18, 512].
    """

    faceid: Tensor | None = None
    image_embeds: Tensor | None = None
    clip_hidden: Tensor | None = None
    clip_hidden_uncond: Tensor | None = None
    clip_person: Tensor | None = None
    clip_parts: Tensor | None = None
    eva_pooled: Tensor | None = None
    eva_hidden: Tensor | None = None
    face_patches: Tensor | None = None
    id_embeds: Tensor | None = None
    w_plus: Tensor | None = None
