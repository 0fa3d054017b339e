"""Which of the families that share its keys a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from dp_adapter.errors import SettingsError
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint
from dp_adapter.weights.library import Library


def variant_of(settings: Settings, checkpoint: Checkpoint, library: Library) -> str:
    """Which of the families that share these keys the file belongs to: told, remembered, or asked for."""
    possible = checkpoint.variants
    if not possible and settings.variant == "auto":
        return checkpoint.family
    if not possible:
        problem = f"{checkpoint.path.name} is {checkpoint.title} by its keys, which leave no choice of a variant"
        raise SettingsError("variant", problem, "Use 'auto'.", "auto")
    if settings.variant in possible:
        library.remember(checkpoint.path, settings.variant)
        return settings.variant
    if settings.variant != "auto":
        raise SettingsError(
            "variant",
            f"{checkpoint.path.name} is not '{settings.variant}'; by its keys it is {' or '.join(possible)}",
            f"Use '{possible[0]}'.",
            possible[0],
        )
    if len(possible) == 1:
        return possible[0]
    known = library.variant(checkpoint.path)
    if known in possible:
        return known
    guess = _guess(checkpoint.path.stem, possible)
    raise SettingsError(
        "variant",
        f"the content of {checkpoint.path.name} cannot tell whether it is {' or '.join(possible)}",
        f"Say which (its name suggests '{guess}'); the answer is remembered for this file.",
        guess,
    )


def _guess(stem: str, possible: Sequence[str]) -> str:
    """The offered default, by the file's name; never applied without being confirmed."""
    plain = "".join(c for c in stem.lower() if c.isalnum())
    fitting = [name for name in possible if name.replace("-", "") in plain]
    return max(fitting, key=len) if fitting else possible[0]
