"""What a mode does, in sentences: shown before generating, in the explanation and in a picture's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dp_adapter.modes.mode import Mode, ModeWords, ResolvedMode
from dp_adapter.settings import Parts, Settings
from dp_adapter.settings.fields import fields_of
from dp_adapter.settings.messages import tidy

_YOURS = " (as you set it)"


def describe_resolved(asked: Settings, resolved: ResolvedMode) -> tuple[str, ...]:
    """Sentences about a mode at work; of the portrait, which changes nothing, none.

    Args:
        asked: the request before the mode; what stands in it is the user's.
    """
    return () if asked.mode == "portrait" else tuple(_sentences(asked, resolved))


def describe_mode(mode: Mode) -> list[str]:
    """A mode without a request: everything it may do, words for all ages included, with their placeholders."""
    lines = [mode.does] if mode.does else []
    if mode.weight != 1:
        lines.append(f"Weight times {tidy(mode.weight)}.")
    if mode.start is not None:
        lines.append(f"The identity starts at {tidy(mode.start)}.")
    if mode.structure is not None:
        lines.append(f"Structure weight {tidy(mode.structure)}, in models that have one.")
    far = mode.far_parts or mode.parts
    weights = [(name, getattr(mode.parts, name), getattr(far, name)) for name in (i.name for i in fields_of(Parts))]
    parts = [
        f"{name} {tidy(near)}" + (f" to {tidy(other)}" if other not in (None, near) else "")
        for name, near, other in weights
        if near is not None
    ]
    lines += [f"Share of the photo: {', '.join(parts)}."] if parts else []
    own = {"target_age": f"target age {mode.target_age}", "expression": f"expression '{mode.expression}'"}
    taken = [words for name, words in own.items() if name in mode.needs]
    lines += [f"Where none is given: {', '.join(taken)}."] if taken else []
    switches = {"retouch": "old photos are retouched", "restore": "the photo's face is restored"}
    switches |= {"face_pass": "finished faces are made anew", "free_parts": "parts left to the text are free"}
    on = [words for name, words in switches.items() if getattr(mode, name)]
    lines += [f"{'; '.join(on).capitalize()}."] if on else []
    for negative, name in ((False, "Words"), (True, "Negative words")):
        found = [_words_of_age(one) for one in mode.words if one.negative == negative]
        lines += [f"{name}: {'; '.join(found)}."] if found else []
    return [*lines, *mode.notes]


def _words_of_age(words: ModeWords) -> str:
    low, high = words.min_age, words.max_age
    if low is None and high is None:
        return _phrase(words)
    ages = f"to {high}" if low is None else f"from {low}" if high is None else f"{low} to {high}"
    return f"{_phrase(words)} [ages {ages}]"


def _sentences(asked: Settings, resolved: ResolvedMode) -> Iterator[str]:
    mode, made = resolved.mode, resolved.settings
    title = mode.title or asked.mode.partition(":")[2]
    yield f"{title}: {mode.does}" if mode.does else f"{title}."
    if mode.weight != 1:
        yield f"Weight {tidy(made.weight)}: {tidy(mode.weight)} times yours."
    if mode.start is not None:
        yours = "" if asked.span.start is None else _YOURS
        yield f"The identity starts at {tidy(made.span.start or 0.0)}{yours}."
    if mode.structure is not None:
        yours = "" if asked.structure is None else _YOURS
        yield f"Structure weight {tidy(made.structure or 0.0)}{yours}, in models that have one."
    if parts := list(_parts(asked, resolved)):
        yield f"Share of the photo: {', '.join(parts)}."
    yield from _photo(asked, resolved)
    for negative, name in ((False, "Words"), (True, "Negative words")):
        if phrases := [_phrase(one) for one in resolved.words if one.negative == negative]:
            yield f"{name}: {', '.join(phrases)}."
    if not asked.mode_words and mode.words:
        yield "Its words are left out (as you set it)."
    if made.free_parts:
        yield "Parts of the face that are left to the text follow the picture without the adapter."
    if resolved.face_pass:
        yield "Finished faces are made anew, enlarged, unless ADetailer does it."
    yield from mode.notes


def _parts(asked: Settings, resolved: ResolvedMode) -> Iterator[str]:
    mode = resolved.mode
    far = mode.far_parts
    open_still = far is not None and (asked.target_age is None or resolved.settings.reference_age is None)
    for name in (info.name for info in fields_of(Parts)):
        near, own, made = (getattr(parts, name) for parts in (mode.parts, asked.parts, resolved.settings.parts))
        if near is None:
            continue
        other = None if far is None else getattr(far, name)
        if own is None and open_still and other not in (None, near):
            yield f"{name} {tidy(near)} to {tidy(other)}, by how far the ages are apart"
        else:
            yield f"{name} {tidy(made)}{'' if own is None else _YOURS}"


def _photo(asked: Settings, resolved: ResolvedMode) -> Iterator[str]:
    if resolved.mode.retouch and asked.retouch == "auto":
        yield "Tint, creases and grain are taken out of the photo where it has them."
    elif asked.retouch == "on":
        yield f"Tint, creases and grain are taken out of the photo{_YOURS}."
    if resolved.mode.restore and asked.restorer == "auto":
        yield "The face in the photo is restored by GFPGAN or CodeFormer where one is installed."
    elif asked.restorer not in ("auto", "off"):
        yield f"The face in the photo is restored by {asked.restorer}{_YOURS}."


def _phrase(words: ModeWords) -> str:
    if words.start == 0 and words.end == 1:
        return words.text
    since = f"from {tidy(words.start)}" if words.start else ""
    until = f"up to {tidy(words.end)}" if words.end < 1 else ""
    return f"{words.text} ({' '.join(filter(None, (since, until)))})"


def mode_parameters(words: Sequence[ModeWords]) -> dict[str, str]:
    """A mode's words as parameters of a picture, under names that are never read back.

    What else it does follows from its name, which is a parameter of the request.
    """

    def phrases(negative: bool) -> str:
        return ", ".join(_phrase(one) for one in words if one.negative == negative)

    found = {"words": phrases(False), "negative words": phrases(True)}
    return {f"DP-Adapter result {name}": text for name, text in found.items() if text}
