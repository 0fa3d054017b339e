"""Regions of any size and any number take work in proportion to their pixels, and those have a bound."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dp_adapter.core.regions.region_masks import box_mask, grow_and_feather
from dp_adapter.core.types import Grid
from dp_adapter.session import Scene, Session
from dp_adapter.session.regions.mask_size import MOST_MOVING, MOST_PIXELS, choose_moving_size, choose_size
from dp_adapter.session.regions.requested_regions import RequestedRegions
from dp_adapter.settings import Settings
from tests.hostile.tries import hostile

A_PIXEL = 700  # numbers that are read or written for one; a Gaussian of 193 taps along both axes takes most


class Work(TorchDispatchMode):
    """Counts the numbers that torch makes, each of a convolution as often as its kernel has taps."""

    def __init__(self) -> None:
        super().__init__()
        self.done = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel())
                self.done += one.numel() * (args[1].numel() if "convolution" in str(func) else 1)
        return made


@given(st.integers(16, 300), st.integers(16, 300), st.floats(0, 400), st.floats(0, 400))
@hostile
def test_work_grows_with_the_pixels_alone(height: int, width: int, grow: float, feather: float) -> None:
    mask = box_mask(0.2, 0.3, 0.8, 0.9, Grid(height, width))
    with Work() as work:
        grow_and_feather(mask, grow, feather)
    # a kernel that is wider than the mask has its own length, too
    around = (height + 200) * (width + 200)
    assert work.done <= A_PIXEL * around
    assert work.largest <= 9 * around


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 2000))
@hostile
def test_the_masks_of_a_request_have_a_bound(width: int, height: int, masks: int) -> None:
    scene = Scene("sd15", width, height)
    size = choose_size(scene, masks)
    latent = Grid(max(1, round(height / 8)), max(1, round(width / 8)))
    assert masks * len(size) <= MOST_PIXELS or size == latent
    if masks * width * height <= MOST_PIXELS:
        assert size == Grid(height, width)
    moving = choose_moving_size(scene, masks)
    assert masks * len(moving) <= MOST_MOVING + masks * (moving.height + moving.width)
    assert math.isclose(moving.width / moving.height, width / height, rel_tol=0.5) or 1 in (moving.width, moving.height)


@given(st.integers(1, 8), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["add", "subtract"]))
@hostile
def test_as_many_regions_as_a_request_can_have(persons: int, grow: float, feather: float, op: str) -> None:
    boxes = [
        {"kind": "box", "box": {"x1": 0.9}, "identity": n % persons, "grow": grow, "feather": feather, "op": op}
        for n in range(30)
    ]
    automatic = [{"identity": 0}, {"identity": 0, "grow": grow}]
    session = Session([], paths_allowed=False)
    request = Settings.from_dict({"regions": [*boxes, *automatic]})
    requested = RequestedRegions(request, Scene("sd15", 128, 128), session.photos, session.encoders)
    pixels = 32 * (requested.size.height + 200) * (requested.size.width + 200)
    with Work() as work:
        for person in range(persons):
            requested.find_regions(person)
    assert work.done <= A_PIXEL * pixels
