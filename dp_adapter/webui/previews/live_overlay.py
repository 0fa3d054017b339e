"""The regions over the host's live preview while a picture forms."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dp_adapter.webui.panel.regions import region_drawing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture
    from torch import Tensor

Regions = Callable[[], "Mapping[int, Tensor | None]"]
_ASSIGN = "assign_current_image"


@contextmanager
def show_regions(regions: Regions, batch: int) -> Generator[None]:
    """Inside the ``with``, each live preview shows where every person acts at that moment.

    The host makes previews in the thread of whoever asks for them, from what it sampled last.

    Args:
        regions: by person, masks [S, h, w], S = 1 where all pictures share one; None for the whole picture.
        batch: how many pictures are sampled together.
    """
    from modules import shared

    state: Any = shared.state
    own: Callable[[Picture], None] | None = state.__dict__.get(_ASSIGN)
    inner: Callable[[Picture], None] = state.assign_current_image

    def assign(image: Picture) -> None:
        inner(_draw_over(image, regions(), batch))

    state.assign_current_image = assign
    try:
        yield
    finally:
        if own is None:
            state.__dict__.pop(_ASSIGN, None)
        else:
            state.assign_current_image = own


def _draw_over(image: Picture, regions: Mapping[int, Tensor | None], batch: int) -> Picture:
    """A preview of one picture, or of a batch as the host arranges it, with the regions in the persons' colours."""
    import numpy as np
    from modules import images, shared
    from PIL import Image

    host: Any = images
    grid: bool = shared.opts.show_progress_grid  # pyright: ignore[reportAttributeAccessIssue]
    masks: dict[int, NDArray[np.float32]] = {}
    for number, mask in regions.items():
        if mask is not None:
            each = [Image.fromarray(np.uint8(one.numpy() * 255)) for one in mask.expand(batch, -1, -1)]
            arranged: Picture = host.image_grid(each) if grid and batch > 1 else each[0]
            masks[number] = np.asarray(arranged.convert("L").resize(image.size), np.float32) / np.float32(255)
    return region_drawing.tint(image.convert("RGB"), masks) if masks else image
