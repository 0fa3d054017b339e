"""Where the identities of a finished pass acted, on the picture that came of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dp_adapter.session.prepared import Prepared
from dp_adapter.session.scene import Mask


def regions_of(prepared: Prepared, number: int) -> dict[int, Mask | None]:
    """The regions [h, w] of one picture of the batch, by person; None is the whole picture."""
    regions: dict[int, Mask | None] = {}
    for person, identity in zip(prepared.explanation.persons, prepared.injection.identities, strict=True):
        region = identity.region
        if region is None:
            regions[person.number] = None
        else:  # [S, h, w]
            sample = region[min(number, len(region) - 1)]
            regions[person.number] = np.asarray(sample.float().cpu().numpy(), np.float32)
    return regions


def union(
    regions: Mapping[int, Mask | None], size: tuple[int, int], cut: tuple[int, int, int, int] | None = None
) -> Mask | None:
    """Where any identity acted on a picture as it is handed back, [h, w]; None where that is all of it.

    Args:
        size: its width and height.
        cut: x, y, width and height of the part of it that was made ("only masked" inpainting).
    """
    if cut is None and any(mask is None for mask in regions.values()):
        return None
    width, height = size
    x, y, w, h = cut or (0, 0, width, height)
    whole = np.zeros((height, width), np.float32)
    part = whole[y : y + h, x : x + w]
    for mask in regions.values():
        fitted = np.ones((h, w), np.float32) if mask is None else _resized(mask, w, h)
        np.maximum(part, fitted[: part.shape[0], : part.shape[1]], out=part)
    return whole


def _resized(mask: Mask, width: int, height: int) -> Mask:
    from PIL import Image

    if mask.shape == (height, width):
        return mask
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR), np.float32)
