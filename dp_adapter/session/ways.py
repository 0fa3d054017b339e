"""How a checkpoint's identity is blended in: what its training had, or what the request says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from dp_adapter.core.types import BlendMode
from dp_adapter.errors import SettingsError
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint

# ToTheBeginning/PuLID@1aa2fc7 app.py: fidelity and "extremely style"; app_v1_1.py's ortho "off" with num_zero 0.
PULID_MODES: Mapping[str, BlendMode] = MappingProxyType(
    {"fidelity": "orthogonal_v2", "style": "orthogonal", "neutral": "add"}
)
PULID_ZEROS: Mapping[BlendMode, int] = MappingProxyType({"orthogonal_v2": 8, "orthogonal": 16})
_PULID = "pulid"


@dataclass(frozen=True)
class Way:
    """What of an ``Identity`` its family decides.

    Attributes:
        zero_tokens: zero tokens behind the identity's.
    """

    mode: BlendMode
    zero_tokens: int = 0


def way_of(settings: Settings, checkpoint: Checkpoint) -> Way:
    """The way of a request. ``pulid_method`` is for PuLID alone, and gives way to a blend mode that was chosen.

    Raises:
        SettingsError: the blend mode does not go with the checkpoint.
    """
    if checkpoint.family != _PULID:
        return Way(_blend(settings, checkpoint))
    mode = PULID_MODES.get(settings.pulid_method, checkpoint.mode)
    if settings.blend != "auto":
        mode = _blend(settings, checkpoint)
    return Way(mode, PULID_ZEROS.get(mode, 0))


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
