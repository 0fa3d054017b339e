"""Where the words for a person stand in a job's prompts, found by the host's own reading of them.

So emphasis, BREAK, the padding at commas and textual inversion move positions as they do in the text encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

from dp_adapter.hosts.person_words import CHUNK, Found, InText, in_text

_log = logging.getLogger("dp_adapter")
# Forge's SD1.5 and SDXL (backend/diffusion_engine), and all others (sd_hijack.py, forge_loader.py). SDXL's two encoders
# read the same tokens.
_READERS = ("text_processing_engine", "text_processing_engine_l", "cond_stage_model")


def find(p: Any, words: str) -> Found:
    """The person words of the pass that is about to be sampled; none where anything about the prompts is unclear.

    Args:
        p: the WebUI's processing object, when its conditions are made.
        words: ``settings.tracking.words``.
    """
    try:
        return _find(p, words)
    except Exception:  # other people's prompt parsers; without a word's place, its attention is not looked at
        _log.debug("The person words of the prompt were not found", exc_info=True)
        return Found(())


def _find(p: Any, words: str) -> Found:
    from modules import prompt_parser, shared

    reader = _reader(p.sd_model)
    if reader is None or getattr(shared.opts, "use_old_emphasis_implementation", False):
        return Found(())
    hires = bool(getattr(p, "is_hr_pass", False))
    indexes: list[list[tuple[int, float]]]
    indexes, texts, _ = prompt_parser.get_multicond_prompt_list(p.hr_prompts if hires else p.prompts)
    further = _hires_steps(p) if hires else None
    schedules = prompt_parser.get_learned_conditioning_prompt_schedules(
        texts, p.firstpass_steps, further, shared.opts.use_old_scheduling
    )
    read = [_always(reader, [text for _, text in schedule], words) for schedule in schedules]
    return Found(tuple(tuple(read[index] for index, _weight in parts) for parts in indexes))


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


def _always(reader: Any, texts: Sequence[str], words: str) -> InText:
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
