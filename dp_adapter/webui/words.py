"""A mode's words and the persons' in a job's prompts, and what was done in its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dp_adapter import naming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dp_adapter.core.text_side import Spoken
    from dp_adapter.edits import Edit
    from dp_adapter.settings import Settings

# Prompts and negative prompts that belong together; each a list with one text a picture. The main ones are one text
# each, for the parameters of grids.
_PAIRS = (("all_prompts", "all_negative_prompts"), ("all_hr_prompts", "all_hr_negative_prompts"))
_MAIN = ("main_prompt", "main_negative_prompt")


def add(p: Any, edit: Edit | None) -> None:
    """Puts the mode's words into all prompts of a job, those of the hires pass too, and tells of it in its parameters.

    For ``process``: the host has made the prompts by then, styles included, and has not read them yet.
    """
    if edit is None or not edit.lines:
        return
    from dp_adapter.edits import mode_parameters, with_words

    for positive, negative in _PAIRS:
        prompts, negatives = getattr(p, positive, None), getattr(p, negative, None)
        if prompts and negatives:  # None without a hires pass
            pairs = [with_words(*pair, edit.words) for pair in zip(prompts, negatives, strict=True)]
            setattr(p, positive, [pair[0] for pair in pairs])
            setattr(p, negative, [pair[1] for pair in pairs])
    main = [getattr(p, name, None) for name in _MAIN]
    if all(isinstance(text, str) for text in main):
        for name, text in zip(_MAIN, with_words(str(main[0]), str(main[1]), edit.words), strict=True):
            setattr(p, name, text)
    p.extra_generation_params.update(mode_parameters(edit.lines, edit.words))


def hinted(p: Any, settings: Settings, people: Sequence[Spoken]) -> Settings:
    """The request with the words that triggers in a job's prompts say are a person's ("a man and a woman img").

    So they are known when ``speak`` has taken the triggers out, and to whoever repeats the picture.
    """
    from dp_adapter.hosts import spoken

    names = ("all_prompts", "all_hr_prompts")
    prompts: dict[str, None] = dict.fromkeys(text for name in names for text in getattr(p, name, None) or ())
    changes: dict[str, str] = {}
    for before, now in zip(people, spoken.hinted(tuple(prompts), people), strict=True):
        if now.words != before.words:
            mine = [n for n, one in enumerate(settings.references) if one.identity == now.person]
            changes[f"references[{mine[0]}].words"] = now.words
    return settings.with_fields(changes)


def speak(p: Any, people: Sequence[Spoken]) -> None:
    """Puts each person's word into a job's prompts as often as it has to stand there, and tells of it; as `add`."""
    if not people:
        return
    from dp_adapter.hosts.spoken import repeated, words_in

    for name in ("all_prompts", "all_hr_prompts"):
        if prompts := getattr(p, name, None):
            setattr(p, name, [repeated(prompt, people) for prompt in prompts])
    main = getattr(p, "main_prompt", None)
    if isinstance(main, str):
        p.main_prompt = repeated(main, people)
    first: list[str] = getattr(p, "all_prompts", None) or [""]
    told = words_in(first[0], people)
    times = {one.person: f" x{one.tokens}" if one.tokens > 1 else "" for one in people}
    if told:
        words = ", ".join(f"{word}{times[person]} for {naming.person(person)}" for person, word in sorted(told.items()))
        p.extra_generation_params["DP-Adapter result person words"] = words
