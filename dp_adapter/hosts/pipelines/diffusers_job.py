"""One generation as diffusers runs it: plain values, checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import SettingsError
from dp_adapter.hosts.pipelines.samplers import SAMPLERS

Pixels = NDArray[np.uint8]
Task = Literal["txt2img", "img2img", "inpaint"]

_RANGES = {
    "width": (64, 4096),
    "height": (64, 4096),
    "steps": (1, 1000),
    "guidance": (0.0, 50.0),
    "seed": (0, 2**53),
    "batch": (1, 64),
    "strength": (0.01, 1.0),
}


@dataclass(frozen=True)
class Prompts:
    """Both prompts from a progress on, 0 being pure noise and 1 the finished picture."""

    start: float
    prompt: str
    negative_prompt: str


@dataclass(frozen=True, eq=False)
class DiffusersJob:
    """What to sample.

    Attributes:
        guidance: classifier-free guidance scale; 1 and less is none.
        seed: of the first picture; picture i of the batch has seed + i.
        init: picture to start from, uint8 RGB [height, width, 3].
        mask: where to repaint, uint8 [height, width], 255 is everything; needs ``init``.
        strength: share of the noise schedule that is run on ``init``.
        later: prompts that take the place of ``prompt`` and ``negative_prompt`` in the course of it, in order.

    Raises:
        SettingsError: a value that cannot be run.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    steps: int = 25
    guidance: float = 7.0
    seed: int = 0
    batch: int = 1
    sampler: str = "dpmpp_2m_karras"
    init: Pixels | None = None
    mask: Pixels | None = None
    strength: float = 0.75
    later: tuple[Prompts, ...] = ()

    def __post_init__(self) -> None:
        for field, (low, high) in _RANGES.items():
            value = getattr(self, field)
            if not low <= value <= high:
                nearest = low if not value > high else high
                raise SettingsError(
                    field, f"{value} is outside {low} to {high}", f"The nearest is {nearest}.", nearest=nearest
                )
        for field in ("width", "height"):
            _require_multiple_of_8(field, getattr(self, field))
        if self.sampler not in SAMPLERS:
            close = difflib.get_close_matches(self.sampler, SAMPLERS, 1, 0)[0]
            hint = f"Known are {', '.join(SAMPLERS)}; the nearest is {close}."
            raise SettingsError("sampler", f"There is no sampler '{self.sampler}'", hint, nearest=close)
        self._require_pictures()
        if not self.denoising_steps:
            least = -(-1 // self.strength)
            raise SettingsError(
                "steps", f"{self.steps} steps at strength {self.strength} are none", f"Take {least:.0f}.", nearest=least
            )

    def _require_pictures(self) -> None:
        size = (self.height, self.width)
        if self.mask is not None and self.init is None:
            raise SettingsError("mask", "A mask needs a picture to repaint", "Give init too.")
        for field, picture, shape in (("init", self.init, (*size, 3)), ("mask", self.mask, size)):
            if picture is not None and (picture.shape != shape or picture.dtype != np.uint8):
                have = f"{picture.dtype} {list(picture.shape)}"
                raise SettingsError(field, f"The picture is {have}, the job needs uint8 {list(shape)}", "Resize it.")

    @property
    def denoising_steps(self) -> int:
        """How many of the steps are made: with an init picture the last ones."""
        return self.steps if self.init is None else min(int(self.steps * self.strength), self.steps)

    @property
    def task(self) -> Task:
        if self.init is None:
            return "txt2img"
        return "img2img" if self.mask is None else "inpaint"


def _require_multiple_of_8(field: str, value: int) -> None:
    if value % 8:
        nearest = (value + 4) // 8 * 8
        problem = f"{value} is not a multiple of 8, the size of a latent cell"
        raise SettingsError(field, problem, f"The nearest is {nearest}.", nearest=nearest)
