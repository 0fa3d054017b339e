"""The host's face restorers, GFPGAN and CodeFormer, for reference photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dp_adapter.session.scene import Picture

_NAMES = ("GFPGAN", "CodeFormer")


def list_restorers() -> Mapping[str, tuple[Callable[[Picture], Picture], bool]]:
    """By name, in the order of preference: what restores, and whether its model is here.

    The hosts list both whether or not their models are; they download one at its first use.
    """
    from modules import shared

    here = {restorer.name(): restorer for restorer in getattr(shared, "face_restorers", [])}
    return {name: (partial(_restore, here[name]), _is_downloaded(here[name], name)) for name in _NAMES if name in here}


def _restore(restorer: Any, picture: Picture) -> Picture:
    return np.asarray(restorer.restore(picture), np.uint8)


def _is_downloaded(restorer: Any, name: str) -> bool:
    folder = Path(str(getattr(restorer, "model_path", "") or ""))
    return folder.is_dir() and any(name.lower() in path.name.lower() for path in folder.glob("*.pth"))
