"""A mode's words in a job's prompts, and what the mode does in its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp_adapter.edits import Edit

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
