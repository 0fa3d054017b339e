"""Where the words for a person stand in a job's prompts, found by the host's own reading of them.

So emphasis, BREAK, the padding at commas and textual inversion move positions as they do in the text encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from dp_adapter.errors import HostError
from dp_adapter.hosts.prompts.person_words import CHUNK, FoundWords, InText, in_text
from dp_adapter.hosts.prompts.word_positions import SpokenTexts, in_tokens, require, same_always
from dp_adapter.webui.prompts.textual_inversion import encode_spellings

if TYPE_CHECKING:
    from dp_adapter.core.text.text_side import Positions, PromptPerson

_log = logging.getLogger("dp_adapter")
# Forge's SD1.5 and SDXL (backend/diffusion_engine), and all others (sd_hijack.py, forge_loader.py). SDXL's two encoders
# read the same tokens.
_READERS = ("text_processing_engine", "text_processing_engine_l", "cond_stage_model")


def find_words(p: Any, words: str) -> FoundWords:
    """The person words of the pass that is about to be sampled; none where anything about the prompts is unclear.

    Args:
        p: the WebUI's processing object, when its conditions are made.
        words: ``settings.tracking.words``.
    """
    try:
        if (read := _read(p)) is not None:
            reader, prompts = read
            return FoundWords(tuple(tuple(_find_always(reader, texts, words) for texts in parts) for parts in prompts))
    except Exception:  # other people's prompt parsers; without a word's place, its attention is not looked at
        _log.debug("The person words of the prompt were not found", exc_info=True)
    return FoundWords(())


def find_spoken(p: Any, people: Sequence[PromptPerson]) -> SpokenTexts:
    """Where the persons' words stand in the prompts of the pass that is about to be sampled.

    Raises:
        HostError: a prompt has no word for a person who needs one, it moves, or the prompts cannot be read.
    """
    read = _read(p)
    if read is None:
        raise HostError(
            "The loaded model's prompts cannot be read, so the word for a person is not known",
            "Switch off 'Use old emphasis implementation' under Settings > Compatibility, or use another model.",
        )
    reader, prompts = read
    found = SpokenTexts(tuple(tuple(_find_spoken(reader, parts, people)) for parts in prompts))
    require(found, people)
    if all(one.learned is None for one in people):
        return found
    places: dict[str, Mapping[int, Positions]] = {}
    for parts, texts in zip(prompts, found.texts, strict=True):
        for stages, where in zip(parts, texts, strict=True):
            places.update(dict.fromkeys(stages, where))
    return replace(found, learned_chunks=tuple(encode_spellings(p, people, places)))


def _find_spoken(
    reader: Any, parts: Sequence[Sequence[str]], people: Sequence[PromptPerson]
) -> list[dict[int, Positions]]:
    """Per text of AND, per person. A text that changes is looked at in all its stages, beside the others' first."""
    tokens = [_tokens(reader, texts) for texts in parts]
    first = [stages[0] for stages in tokens]
    found = [
        [in_tokens([*first[:i], stage, *first[i + 1 :]], reader.tokenize, people)[i] for stage in stages]
        for i, stages in enumerate(tokens)
    ]
    return same_always(found, people)


def _tokens(reader: Any, texts: Sequence[str]) -> list[list[list[int]]]:
    """Per text its chunks of 77 tokens."""
    chunked, _ = reader.process_texts(list(texts))
    tokens = [[cast("list[int]", chunk.tokens) for chunk in chunks] for chunks in chunked]
    if any(len(one) != CHUNK for chunks in tokens for one in chunks):
        raise HostError("The loaded model's text encoder does not read chunks of 77 tokens", "Use SD1.5 or SDXL.")
    return tokens


def _read(p: Any) -> tuple[Any, list[list[list[str]]]] | None:
    """What reads the model's prompts, and per picture, per text of AND, its stages; None where that is unclear."""
    from modules import prompt_parser, shared

    reader = _reader(p.sd_model)
    if reader is None or getattr(shared.opts, "use_old_emphasis_implementation", False):
        return None
    hires = bool(getattr(p, "is_hr_pass", False))
    indexes: list[list[tuple[int, float]]]
    indexes, texts, _ = prompt_parser.get_multicond_prompt_list(p.hr_prompts if hires else p.prompts)
    further = _hires_steps(p) if hires else None
    schedules = prompt_parser.get_learned_conditioning_prompt_schedules(
        texts, p.firstpass_steps, further, shared.opts.use_old_scheduling
    )
    stages = [[cast(str, text) for _, text in schedule] for schedule in schedules]
    return reader, [[stages[index] for index, _weight in parts] for parts in indexes]


def _reader(model: Any) -> Any | None:
    """What turns a model's texts into chunks of tokens."""
    candidates = (getattr(model, name, None) for name in _READERS)
    return next((one for one in candidates if hasattr(one, "process_texts") and hasattr(one, "tokenize")), None)


def _hires_steps(p: Any) -> int:
    """As ``calculate_hr_conds`` in processing.py has them, on which the hires part of a prompt's schedule depends."""
    from modules import sd_samplers

    config = sd_samplers.find_sampler_config(p.hr_sampler_name or p.sampler_name)
    steps: int = p.hr_second_pass_steps or p.steps
    return config.total_steps(steps) if config else steps


def _find_always(reader: Any, texts: Sequence[str], words: str) -> InText:
    """Person words that stand at the same place in every text of a schedule ("[old:young:0.5] man")."""
    chunked, _ = reader.process_texts(list(texts))
    read: list[InText] = []
    for chunks in chunked:
        tokens = [cast("list[int]", chunk.tokens) for chunk in chunks]
        if any(len(one) != CHUNK for one in tokens):
            return InText()
        read.append(in_text(tokens, reader.tokenize, words))
    common = set(read[0].positions).intersection(*(one.positions for one in read))
    return InText(tuple(sorted(common)), all(one.head for one in read))
