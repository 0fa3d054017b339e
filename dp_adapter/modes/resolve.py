"""Resolves a mode: the request with its automatic values filled in, the mode's words, and sentences about both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dp_adapter.modes.describe import describe_resolved
from dp_adapter.modes.expressions import find_expression
from dp_adapter.modes.mode import NEEDS, Mode, ModeWords, ResolvedMode
from dp_adapter.settings import Gate, Parts, Settings, field_at
from dp_adapter.settings.fields import fields_of
from dp_adapter.settings.sections import WEIGHT, Span

_FAR = 40  # years between photo and picture from which a person is as different as they get
_UNKNOWN = 20  # years that are taken where the age in the photo is not known
_AGE_UNKNOWN = (
    "The age in the photo is not known: the mode's words for the target age act, and the photo's share is as at "
    f"{_UNKNOWN} years between the two. Give the age in the photo to have it follow that."
)


@dataclass(frozen=True)
class ModeFacts:
    """What the request cannot know.

    Attributes:
        reference_age: of the person in the photo, estimated; None where nothing could.
        inpaint: whether a part of a picture is painted anew.
    """

    reference_age: int | None = None
    inpaint: bool = False


_EXPECTED = ModeFacts(inpaint=True)
"""What is taken to be so before a photo or a picture was looked at."""


def needs_reference_age(settings: Settings, mode: Mode) -> bool:
    """Whether the age in the photo has to be estimated, since the mode reads it and the request does not say it."""
    return settings.reference_age is None and "reference_age" in mode.reads


def resolve_mode(settings: Settings, mode: Mode, facts: ModeFacts) -> ResolvedMode:
    """The request as the mode makes it; what the mode asks for and nobody gave is taken from the mode."""
    age = settings.reference_age if settings.reference_age is not None else facts.reference_age
    resolved = _apply(replace(settings, reference_age=age), mode, facts)
    notes = list(_note_defaults(settings, mode))
    if age is None and "reference_age" in mode.reads:
        notes.append(_AGE_UNKNOWN)
    if settings.mode == "inpaint" and not facts.inpaint:
        notes.append("Nothing is painted anew here, so the mode 'inpaint' acts as 'portrait'.")
    return replace(resolved, notes=tuple(notes))


def describe_effect(settings: Settings, mode: Mode) -> tuple[str, ...]:
    """What the mode will do, in sentences, as far as that is known before a photo was looked at."""
    return (*_apply(settings, mode, _EXPECTED).lines, *_note_defaults(settings, mode))


def fill_in(settings: Settings, mode: Mode) -> Settings:
    """The request with the mode's values, as far as they are known before a photo was looked at."""
    return _apply(settings, mode, _EXPECTED).settings


def drop_unread_fields(settings: Settings, mode: Mode) -> Settings:
    """The request without the fields that this mode does not read: their values were left over from another mode."""
    idle: dict[str, Any] = {name: field_at(name).default for name in NEEDS if name not in mode.reads}
    return replace(settings, **idle, mode_words=settings.mode_words or not mode.words)


def _defaults(settings: Settings, mode: Mode) -> dict[str, Any]:
    """What the mode asks for, can say itself, and the request leaves open."""
    own = {"target_age": mode.target_age, "expression": mode.expression}
    return {name: own[name] for name in own if name in mode.needs and _is_open(getattr(settings, name))}


def _is_open(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _note_defaults(settings: Settings, mode: Mode) -> Iterator[str]:
    for name, value in _defaults(settings, mode).items():
        yield f"{field_at(name).label} {value} is taken, as none was given."


def _apply(asked: Settings, mode: Mode, facts: ModeFacts) -> ResolvedMode:
    settings = replace(asked, **_defaults(asked, mode))
    acts = settings.mode != "inpaint" or facts.inpaint
    mode = mode if acts else Mode()
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
    resolved = ResolvedMode(mode, changed, words, face_pass=wants_pass)
    return replace(resolved, lines=describe_resolved(settings, resolved)) if acts else resolved


def _span(settings: Settings, mode: Mode) -> Span:
    span = settings.span
    if span.start is not None or mode.start is None:
        return span
    return Span(min(mode.start, span.end), span.end)


def _parts(settings: Settings, mode: Mode) -> Parts:
    """The user's weights, else the mode's: between those near and far by the distance of the ages."""
    near, far = mode.parts, mode.far_parts
    share = 0.0
    if far is not None and settings.target_age is not None:
        photo = settings.reference_age
        share = min(1.0, (_UNKNOWN if photo is None else abs(settings.target_age - photo)) / _FAR)
    chosen: dict[str, float | None] = {}
    for name in (info.name for info in fields_of(Parts)):
        own, one = getattr(settings.parts, name), getattr(near, name)
        other = one if far is None else getattr(far, name)
        between = one if one is None or other is None else round(one + (other - one) * share, 4)
        chosen[name] = between if own is None else own
    return Parts(**chosen)


def _words(settings: Settings, mode: Mode) -> tuple[ModeWords, ...]:
    """The mode's words for this request, without phrases that speak of what is not known."""
    expression = find_expression(settings.expression)
    stands_for = {
        "{target_age}": "" if settings.target_age is None else str(settings.target_age),
        "{reference_age}": "" if settings.reference_age is None else str(settings.reference_age),
        "{expression}": expression.words,
        "{against}": expression.against,
    }
    unknown = [name for name, value in stands_for.items() if not value]
    found: list[ModeWords] = []
    for one in mode.words:
        if not one.fits(settings.target_age):
            continue
        phrases = (phrase.strip() for phrase in one.text.split(","))
        text = ", ".join(one for one in phrases if one and not any(name in one for name in unknown))
        for name, value in stands_for.items():
            text = text.replace(name, value)
        if text:
            found.append(replace(one, text=text[:300]))
    return tuple(found)
