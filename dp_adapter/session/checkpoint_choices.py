"""How a checkpoint's identity is blended in: what its training had, or what the request says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from dp_adapter.core.injection import OWN_MODES
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


def with_parts(settings: Settings, checkpoint: Checkpoint) -> tuple[Settings, tuple[str, ...]]:
    """The request with the parts that a checkpoint carries in its person's automatic region, and what to tell.

    Parts that the user or the mode says stay. Hair and clothes are found for everybody together, so several persons'
    regions are left as they are.
    """
    wanted = [name for name in checkpoint.parts if getattr(settings.parts, name) is None]
    if not wanted:
        return settings, ()
    if settings.identities > 1:
        drawn = {region.identity for region in settings.regions}
        note = f"{checkpoint.title} also carries {', '.join(wanted)}: draw a region around each person to keep them."
        return settings, () if len(drawn) == settings.identities else (note,)
    return settings.with_fields({f"parts.{name}": 1.0 for name in wanted}), ()


def _blend(settings: Settings, checkpoint: Checkpoint) -> BlendMode:
    if settings.blend == "auto":
        return checkpoint.mode
    if settings.blend != checkpoint.mode and {settings.blend, checkpoint.mode} & OWN_MODES:
        raise SettingsError(
            "blend",
            f"'{settings.blend}' does not go with {checkpoint.title} weights, which were trained for "
            f"'{checkpoint.mode}'",
            "Use 'auto'.",
            "auto",
        )
    return cast(BlendMode, settings.blend)
