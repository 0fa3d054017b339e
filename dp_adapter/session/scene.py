"""What a host knows about the generation that the settings cannot know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Encode = Callable[[Sequence[str]], Tensor]
Picture = NDArray[np.uint8]
EncodePicture = Callable[[Picture], Tensor]
Mask = NDArray[np.float32]


@dataclass(frozen=True)
class Crop:
    """The part of a whole picture that is being made, in fractions of its width and height."""

    x0: float = 0.0
    y0: float = 0.0
    x1: float = 1.0
    y1: float = 1.0


@dataclass(frozen=True, eq=False)
class Scene:
    """One generation.

    Attributes:
        base: family of the loaded model.
        width, height: of the picture to be made, in pixels.
        inits: RGB pictures [h, w, 3] that img2img or inpaint starts from, of any size: none, one for all pictures of
            the batch, or one for each.
        inpaint: mask [h, w] in 0..1 of what is painted anew.
        encode: texts of one chunk -> the base model's context of each, [n, L, D], as its UNet gets it; None where a
            host cannot encode by itself.
        encode_picture: an RGB picture [h, w, 3] of this size -> its latents [4, h / 8, w / 8], scaled as the UNet's;
            None likewise.
        words: the prompt's words for single persons, in its order.
        crop: where the picture lies in the whole one that boxes and drawn masks are given for ("only masked", the cut
            edges of a hires pass). ``inits`` and ``inpaint`` are cut already.
        controls: whether the host has a ControlNet.
        progress: at each call of the UNet, as far as the host knows it before; empty where it does not.
        bytes_per_number: size of the numbers that the host computes with; the largest where it does not say.
    """

    base: Literal["sd15", "sdxl"]
    width: int
    height: int
    inits: tuple[Picture, ...] = ()
    inpaint: Mask | None = None
    crop: Crop = Crop()
    encode: Encode | None = None
    words: tuple[str, ...] = ()
    bytes_per_number: int = 4
    encode_picture: EncodePicture | None = None
    controls: bool = False
    progress: tuple[float, ...] = ()
