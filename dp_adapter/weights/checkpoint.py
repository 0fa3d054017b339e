"""A checkpoint in memory: its modules, the encoders that it needs, and the recipe of its identity tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from dp_adapter.core.adapter import Adapter, LowRank
from dp_adapter.core.text.sharing_by_words import Sharing
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.core.types import BlendMode, Features, Tokens
from dp_adapter.errors import WeightsError

Base = Literal["sd15", "sdxl"]
Encoder = Literal[
    "arcface",
    "arcface-raw",
    "sface",
    "clip-embeds",
    "clip-hidden",
    "clip-person",
    "clip-parsed",
    "clip-parts",
    "eva",
    "transface",
    "pixels",
    "w-plus",
]
"""What photos are encoded with; ``clip-parsed`` is CLIP's hidden state of the face without its background."""
Crop = Literal["face", "photo"]
SITES: Mapping[Base, int] = MappingProxyType({"sd15": 16, "sdxl": 70})
BASE_NAMES: Mapping[Base, str] = MappingProxyType({"sd15": "SD1.5", "sdxl": "SDXL"})


@dataclass(frozen=True)
class RecipeOptions:
    """What a recipe needs besides the features.

    Attributes:
        shortcut: FaceID-Plus v2 (True) or v1 (False).
        structure: weight of the CLIP part in v2.
        encode: the host's text encoders, texts -> contexts [n, 77, D] in float32; None where the host cannot.
        person: number of the person among all, for checkpoints that tell persons apart (StoryMaker).
    """

    shortcut: bool = True
    structure: float = 1.0
    encode: Callable[[Sequence[str]], Tensor] | None = None
    person: int = 0


Recipe = Callable[[Adapter, Features, RecipeOptions], Tokens]
Fusion = Callable[[Adapter, Features, RecipeOptions], TextIdentity]


@dataclass(frozen=True, eq=False)
class BuiltInTower:
    """A vision tower inside a file, which looks at whole photos itself.

    Attributes:
        family: of its checkpoint; fingerprint: makes a digest of its weights.
        image_size: side of its input in px.
        pack: of insightface, whose raw embedding of the face it takes besides; None where it takes none.
        embed: pixels [n, 3, s, s] and the raw face embeddings [n, e] -> embeddings [n, T, D].
    """

    family: str
    fingerprint: Callable[[], str]
    image_size: int
    pack: str | None
    embed: Callable[[Tensor, Tensor | None], Tensor]

    @cached_property
    def digest(self) -> str:
        """The same for files with the same weights of it; read from them at first use."""
        return self.fingerprint()

    @property
    def kind(self) -> str:
        """The name under which saved identities keep its embeddings."""
        return f"{self.family}/{self.digest}"


@dataclass(frozen=True)
class Variant:
    """A published model, where several have the same keys: what these cannot tell.

    Attributes:
        pack: of insightface, whose networks it was trained on where it takes ArcFace.
        crop: what CLIP sees, the aligned face or the whole photo.
        shortcut: as ``RecipeOptions`` says.
        identity_net: whether a ControlNet for the face's keypoints belongs to it (InstantID).
    """

    pack: str = "buffalo_l"
    crop: Crop = "face"
    shortcut: bool = True
    identity_net: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """One adapter file.

    Attributes:
        family: row of the format table, e.g. ``faceid-plus``.
        encoders: what the photos must be encoded with, in the order of the family's inputs.
        tokens_per_photo: T.
        features_width: width of the encoder outputs it takes, by encoder.
        shapes: of features of one photo that these widths leave open, by field of ``Features``.
        models: published models that share these keys, by name; of more than one the user must say which it is.
        combine: how several photos are joined when the user does not say.
        parts: parts of a person besides the face that it carries over.
        most_photos: of one person, where it was trained with no more; the best are taken.
        mode: how its identity is blended when the user does not say.
        methods: blend modes by the method that a request may name (``pulid_method``).
        zero_tokens: zero tokens to append to the identity's, so that attention may look away, by blend mode.
        pack, crop: as ``Variant`` says, where the keys leave no choice.
        fusion: makes what acts on the text side, for families that act there.
        sharing: how several persons share a picture when the user does not say.
        tower: the one inside that looks at photos.
        start: progress at which it starts to act when neither the user nor the mode says; None for the usual.
        guidance: identity guidance that it acts with when the user does not say; None for none.
        metadata: facts written into the file (own format).
    """

    path: Path
    family: str
    title: str
    base: Base
    adapter: Adapter
    encoders: tuple[Encoder, ...]
    recipe: Recipe
    tokens_per_photo: int
    features_width: Mapping[Encoder, int]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    lora: tuple[LowRank, ...] = ()
    models: Mapping[str, Variant] = field(default_factory=dict[str, Variant])
    combine: Literal["average", "concatenate", "best"] = "average"
    mode: BlendMode = "add"
    methods: Mapping[str, BlendMode] = field(default_factory=dict[str, BlendMode])
    zero_tokens: Mapping[BlendMode, int] = field(default_factory=dict[BlendMode, int])
    pack: str = "buffalo_l"
    crop: Crop = "face"
    fusion: Fusion | None = None
    sharing: Sharing = "regions"
    tower: BuiltInTower | None = None
    start: float | None = None
    guidance: float | None = None
    most_photos: int | None = None
    parts: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the published models that share these keys; none where the keys leave no choice."""
        return tuple(self.models)

    def variant(self, name: str) -> Variant:
        """What one of the published models needs, or the only one that it can be."""
        return self.models.get(name, Variant(self.pack, self.crop))

    @property
    def personal(self) -> bool:
        """Whether one person is in the file, so that it takes no photo."""
        return not self.encoders

    def on_text(self, features: Features, options: RecipeOptions | None = None) -> TextIdentity | None:
        """What one person changes in the text's context; None for families that leave it alone. Raises as `tokens`."""
        if self.fusion is None:
            return None
        with torch.no_grad():
            return self.fusion(self.adapter, features, options or RecipeOptions())

    @property
    def context(self) -> int:
        """Width D of its identity tokens, which is the text encoder's."""
        return self.adapter.context

    def tokens(self, features: Features, options: RecipeOptions | None = None) -> Tokens:
        """Identity tokens of one person, photos concatenated: cond and uncond [n * T, D] in float32.

        Raises:
            WeightsError: features are missing or of another width than the checkpoint was trained with.
        """
        with torch.no_grad():
            return self.recipe(self.adapter, features, options or RecipeOptions())


def require(features: Tensor | None, what: str, width: int) -> Tensor:
    """The features in float32, checked against the width [.., width] that a projection takes."""
    if features is None:
        raise WeightsError(f"This checkpoint needs {what}, and none was computed")
    if features.shape[-1] != width:
        raise WeightsError(
            f"This checkpoint was trained with {what} of width {width}, but the encoder gives {features.shape[-1]}",
            "Choose the encoder that the checkpoint was made for.",
        )
    return features.float()


def make_no_tokens(adapter: Adapter, _features: Features, _options: RecipeOptions) -> Tokens:
    """The recipe of families that act on the text side alone: [0, D]."""
    none = torch.zeros(0, adapter.context)
    return Tokens(none, none)
