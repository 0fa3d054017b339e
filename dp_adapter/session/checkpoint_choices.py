"""What a checkpoint and the request decide together: its variant, how it is blended in, and which parts it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from dp_adapter.core.injection import REQUIRED_MODES
from dp_adapter.core.types import BlendMode
from dp_adapter.errors import SettingsError
from dp_adapter.settings import Parts, Settings
from dp_adapter.weights.checkpoint import Checkpoint
from dp_adapter.weights.library import Library


@dataclass(frozen=True)
class BlendChoice:
    """How an identity is blended in.

    Attributes:
        zero_tokens: zero tokens behind the identity's.
    """

    mode: BlendMode
    zero_tokens: int = 0


def choose_blend(blend: str, pulid_method: str, checkpoint: Checkpoint) -> BlendChoice:
    """Chooses the blend mode: the checkpoint's own, unless the request names another.

    ``pulid_method`` is for PuLID alone, and gives way to a blend mode that was chosen.

    Raises:
        SettingsError: the blend mode does not go with the checkpoint.
    """
    mode = _blend_mode(blend, checkpoint)
    if blend == "auto":
        mode = checkpoint.methods.get(pulid_method, mode)
    return BlendChoice(mode, checkpoint.zero_tokens.get(mode, 0))


def _blend_mode(blend: str, checkpoint: Checkpoint) -> BlendMode:
    if blend == "auto":
        return checkpoint.mode
    if blend != checkpoint.mode and {blend, checkpoint.mode} & REQUIRED_MODES:
        raise SettingsError(
            "blend",
            f"'{blend}' does not go with {checkpoint.title} weights, which were trained for '{checkpoint.mode}'",
            "Use 'auto'.",
            "auto",
        )
    return cast(BlendMode, blend)


def choose_parts(settings: Settings, checkpoint: Checkpoint) -> tuple[Parts, tuple[str, ...]]:
    """The parts of a person's automatic region with those that the checkpoint carries besides, and a note on them.

    Parts that the user or the mode says stay. Hair and clothes are found for everybody together, so several persons'
    regions are left as they are.
    """
    carried = [name for name in checkpoint.parts if getattr(settings.parts, name) is None]
    if not carried:
        return settings.parts, ()
    if settings.identities > 1:
        drawn = {region.identity for region in settings.regions}
        note = f"{checkpoint.title} also carries {', '.join(carried)}: draw a region around each person to keep them."
        return settings.parts, () if len(drawn) == settings.identities else (note,)
    return replace(settings.parts, **dict.fromkeys(carried, 1.0)), ()


def choose_variant(asked: str, checkpoint: Checkpoint, library: Library) -> str:
    """Chooses which of the families that share its keys a file belongs to: as asked for, or as answered before.

    Raises:
        SettingsError: the file is no such variant, or only the user can say which it is.
    """
    possible = checkpoint.variants
    if not possible and asked == "auto":
        return checkpoint.family
    if not possible:
        problem = f"{checkpoint.path.name} is {checkpoint.title} by its keys, which leave no choice of a variant"
        raise SettingsError("variant", problem, "Use 'auto'.", "auto")
    if asked in possible:
        library.remember(checkpoint.path, asked)
        return asked
    if asked != "auto":
        raise SettingsError(
            "variant",
            f"{checkpoint.path.name} is not '{asked}'; by its keys it is {' or '.join(possible)}",
            f"Use '{possible[0]}'.",
            possible[0],
        )
    if len(possible) == 1:
        return possible[0]
    known = library.variant(checkpoint.path)
    if known in possible:
        return known
    guess = _guess_variant(checkpoint.path.stem, possible)
    raise SettingsError(
        "variant",
        f"the content of {checkpoint.path.name} cannot tell whether it is {' or '.join(possible)}",
        f"Say which (its name suggests '{guess}'); the answer is remembered for this file.",
        guess,
    )


def _guess_variant(stem: str, possible: Sequence[str]) -> str:
    """The offered default, by the file's name; never applied without being confirmed."""
    plain = "".join(c for c in stem.lower() if c.isalnum())
    fitting = [name for name in possible if name.replace("-", "") in plain]
    return max(fitting, key=len) if fitting else possible[0]
