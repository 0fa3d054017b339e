"""A region that becomes known, and moves, while the picture forms."""

from __future__ import annotations

from torch import Tensor


class Track:
    """Where one identity acts now. Moved between calls of the UNet, never during one.

    Attributes:
        mask: visually sensitive region [S, H, W] in [0, 1] in picture space, S = 1 or one per sample; None is the
            whole picture.
        free: the part of the picture [S, H, W] that follows the text-only twins, see ``Identity.free``.
        version: how often it was moved, so that what was made from a mask can be kept until then.
    """

    def __init__(self, mask: Tensor | None, free: Tensor | None = None) -> None:
        self.mask = mask
        self.free = free
        self.version = 0

    def move(self, mask: Tensor | None, free: Tensor | None = None) -> None:
        """From the next call of the UNet on, the identity acts here, and this part is free."""
        self.mask = mask
        self.free = free
        self.version += 1
