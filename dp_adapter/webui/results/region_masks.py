"""Pictures of the regions beside a job's own, white where an identity acted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dp_adapter.webui.host import options

if TYPE_CHECKING:
    from torch import Tensor


def hand_back_masks(p: Any, processed: Any, regions: Sequence[Tensor]) -> None:
    """Adds the regions to a job's pictures, and saves them where the settings page says so.

    Args:
        regions: masks [S, h, w] in 0..1.
    """
    import numpy as np
    from PIL import Image

    size = processed.images[0].size if processed.images else (p.width, p.height)
    pictures = [
        Image.fromarray(np.uint8(mask.numpy() * 255 + 0.5)).resize(size, Image.Resampling.BILINEAR)
        for masks in regions
        for mask in masks
    ]
    processed.images += pictures
    processed.infotexts += [processed.info] * len(pictures)
    if options.read().save_masks:
        from modules import images

        for picture in pictures:
            images.save_image(picture, p.outpath_samples, "", suffix="-dp-adapter-region", p=p)
