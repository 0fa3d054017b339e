"""Request and mode → the request with its automatic values filled, the words, and what is told about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dp_adapter.edits.expressions import named
from dp_adapter.edits.mode import Mode, Words
from dp_adapter.edits.told import lines
from dp_adapter.errors import SettingsError
from dp_adapter.settings import Gate, Parts, Settings
from dp_adapter.settings.pieces import WEIGHT, Span
from dp_adapter.settings.records import fields_of

_FAR = 40  # years between photo and picture from which a person is as different as they get


@dataclass(frozen=True)
class Facts:
    """What the request cannot know.

    Attributes:
        reference_age: of the person in the photo, estimated; None where nothing could.
        inpaint: whether a part of a picture is painted anew.
    """

    reference_age: int | None = None
    inpaint: bool = False


@dataclass(frozen=True)
class Edit:
    """A mode at work.

    Attributes:
        settings: the request with what the mode sets; what the user set stands.
        words: for the prompts; none where the user wants none.
        lines: what the mode does here, in sentences.
        face_pass: whether the mode wants finished faces made anew, where the request leaves that to it.
    """

    mode: Mode
    settings: Settings
    words: tuple[Words, ...] = ()
    lines: tuple[str, ...] = ()
    face_pass: bool = False


def needs_reference_age(settings: Settings, mode: Mode) -> bool:
    """Whether the age in the photo has to be estimated, since the mode needs it and the request does not say it."""
    return settings.reference_age is None and (mode.far_parts is not None or "reference_age" in mode.needs)


def resolve(settings: Settings, mode: Mode, facts: Facts) -> Edit:
    """The request as the mode makes it.

    Raises:
        SettingsError: a field that the mode needs is missing.
    """
    age = settings.reference_age if settings.reference_age is not None else facts.reference_age
    if age is None and needs_reference_age(settings, mode):
        raise SettingsError(
            "reference_age",
            f"the age in the photo is not known, and the mode '{settings.mode}' needs it",
            "Give it in years; with insightface's pack buffalo_l installed it is estimated.",
        )
    settings = settings if age is None else replace(settings, reference_age=age)
    for name in mode.needs:
        if getattr(settings, name) in (None, ""):
            raise SettingsError(name, f"is missing, and the mode '{settings.mode}' needs it", "Give it.")
    return _edit(settings, mode, facts.inpaint)


def before(settings: Settings, mode: Mode) -> tuple[str, ...]:
    """What the mode will do, told before a photo was looked at: ``Edit.lines`` as far as they are known then."""
    return _edit(settings, mode, inpaint=True).lines


def filled(settings: Settings, mode: Mode) -> Settings:
    """The request with the mode's values, as far as they are known before a photo was looked at."""
    return _edit(settings, mode, inpaint=True).settings


def _edit(settings: Settings, mode: Mode, inpaint: bool) -> Edit:
    words = _words(settings, mode) if settings.mode_words else ()
    changed = replace(
        settings,
        weight=min(round(settings.weight * mode.weight, 4), WEIGHT.high),
        span=_span(settings, mode),
        structure=mode.structure if settings.structure is None else settings.structure,
        gate=Gate(mode.gate, mode.gate, mode.gate) if mode.gate and settings.gate == Gate() else settings.gate,
        parts=_parts(settings, mode),
        free_parts=settings.free_parts or mode.free_parts,
        retouch="off" if settings.retouch == "auto" and not mode.retouch else settings.retouch,
        restorer="off" if settings.restorer == "auto" and not mode.restore else settings.restorer,
    )
    wants_pass = mode.face_pass and settings.face_pass.use == "auto"
    edit = Edit(mode, changed, words, face_pass=wants_pass)
    return replace(edit, lines=lines(settings, edit, inpaint))


def _span(settings: Settings, mode: Mode) -> Span:
    span = settings.span
    if span.start is not None or mode.start is None:
        return span
    return Span(min(mode.start, span.end), span.end)


def _parts(settings: Settings, mode: Mode) -> Parts:
    """The user's weights, else the mode's: between those near and far by the distance of the ages."""
    near, far = mode.parts, mode.far_parts
    share = 0.0
    if far is not None and settings.target_age is not None and settings.reference_age is not None:
        share = min(1.0, abs(settings.target_age - settings.reference_age) / _FAR)
    chosen: dict[str, float | None] = {}
    for name in (info.name for info in fields_of(Parts)):
        own, one = getattr(settings.parts, name), getattr(near, name)
        other = one if far is None else getattr(far, name)
        between = one if one is None or other is None else round(one + (other - one) * share, 4)
        chosen[name] = between if own is None else own
    return Parts(**chosen)


def _words(settings: Settings, mode: Mode) -> tuple[Words, ...]:
    """The mode's words for this request; those of which nothing is left are left out."""
    expression = named(settings.expression)
    stands_for = {
        "{target_age}": "" if settings.target_age is None else str(settings.target_age),
        "{reference_age}": "" if settings.reference_age is None else str(settings.reference_age),
        "{expression}": expression.words,
        "{against}": expression.against,
    }
    found: list[Words] = []
    for one in mode.words:
        if one.fits(settings.target_age):
            text = one.text
            for name, value in stands_for.items():
                text = text.replace(name, value)
            if text.strip(" ,"):
                found.append(replace(one, text=text[:300]))
    return tuple(found)
