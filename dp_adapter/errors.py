"""Every error a user can meet: what is wrong, with which value, and what to do."""

from __future__ import annotations

from dp_adapter import hints, naming


class DPAdapterError(Exception):
    """Base of all errors that speak to a user.

    Args:
        problem: what is wrong, naming the file, field or value, without a final full stop.
        hint: what to do about it, as one imperative sentence; empty when the problem says it all.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = naming.word(hints.hide_folders(problem)).rstrip(".")
        self.hint = hint = naming.word(hints.hide_folders(hint))
        super().__init__(f"{self.problem}. {hint}".rstrip() if hint else f"{self.problem}.")


class SettingsError(DPAdapterError):
    """A field of the request is unknown, of the wrong type or out of range.

    Args:
        field: dotted name of the field, e.g. ``regions[0].box``.
        nearest: the nearest valid value, where there is one.
    """

    def __init__(self, field: str, problem: str, hint: str = "", nearest: object = None) -> None:
        self.field = field = naming.word(field)
        self.nearest = nearest
        super().__init__(f"{field}: {problem}", hint)


class PictureError(DPAdapterError):
    """A picture cannot be read, or is too small or too large to use."""


class FaceError(DPAdapterError):
    """No usable face, or not the asked-for one, in a picture."""


class IdentityError(DPAdapterError):
    """A saved identity is missing, damaged or foreign, or its name cannot be used."""


class WeightsError(DPAdapterError):
    """A checkpoint is damaged, foreign, unsafe or for another base model."""


class CatalogError(DPAdapterError):
    """A known model file is missing, cannot be fetched, or is not what it should be."""


class MissingDependencyError(DPAdapterError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed",
            f"Install it with: {hints.install(package, extra)}.",
        )


class HostError(DPAdapterError):
    """The model at hand is not one the adapter can work in."""


class TrainingError(DPAdapterError):
    """Training data are missing or damaged, or a run cannot go on."""
