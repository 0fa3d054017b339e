"""What a host knows about the generation that the settings cannot know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Mask = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scene:
    """One generation.

    Attributes:
        base: family of the loaded model.
        width, height: of the picture to be made, in pixels.
        init: RGB picture [h, w, 3] that img2img or inpaint starts from, of any size.
        inpaint: mask [h, w] in 0..1 of what is painted anew.
    """

    base: Literal["sd15", "sdxl"]
    width: int
    height: int
    init: Picture | None = None
    inpaint: Mask | None = None
