"""How a checkpoint's identity is blended in: what its training had, or what the request says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from dp_adapter.core.types import BlendMode
from dp_adapter.errors import SettingsError
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Way:
    """What of an ``Identity`` its family decides.

    Attributes:
        zero_tokens: zero tokens behind the identity's.
    """

    mode: BlendMode
    zero_tokens: int = 0


def way_of(settings: Settings, checkpoint: Checkpoint) -> Way:
    """The way of a request.

    Raises:
        SettingsError: the blend mode does not go with the checkpoint.
    """
    return Way(_blend(settings, checkpoint))


def _blend(settings: Settings, checkpoint: Checkpoint) -> BlendMode:
    if settings.blend == "auto":
        return checkpoint.mode
    if (settings.blend == "gated") != (checkpoint.mode == "gated"):
        raise SettingsError(
            "blend",
            f"'{settings.blend}' does not go with {checkpoint.title} weights, which were trained for "
            f"'{checkpoint.mode}'",
            "Use 'auto'.",
            "auto",
        )
    return cast(BlendMode, settings.blend)
