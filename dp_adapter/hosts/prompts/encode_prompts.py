"""Prompts of any length as text embeddings: chunks of 75 tokens, encoded one by one and joined, as the WebUIs do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dp_adapter.core.schedule import progress_of
from dp_adapter.core.text.text_side import PromptPerson
from dp_adapter.errors import HostError
from dp_adapter.hosts.pipelines.diffusers_job import DiffusersJob, Prompts
from dp_adapter.hosts.prompts.person_words import FoundWords, in_text
from dp_adapter.hosts.prompts.word_positions import SpokenTexts, in_tokens, require, same_always

_CHUNK = 75  # CLIP reads 77 tokens, of which two mark start and end


def encode(pipeline: Any, prompt: str, negative_prompt: str, guided: bool) -> dict[str, Tensor]:
    """Arguments of a diffusers pipeline's call that carry both prompts; up to 75 tokens, the pipeline's own numbers.

    Args:
        pipeline: Stable Diffusion 1.5 or SDXL of diffusers.
        guided: whether there is an unconditional half, which needs the negative prompt.

    Returns:
        ``prompt_embeds`` [1, 77 n, D], with SDXL ``pooled_prompt_embeds`` [1, P]; the same with ``negative_`` when
        guided, n being the chunks of the longer prompt.
    """
    readers = readers_of(pipeline)
    texts = [prompt, negative_prompt] if guided else [prompt]
    chunks = max(chunks_of(readers[0][0], text) for text in texts)
    arguments: dict[str, Tensor] = {}
    for prefix, text in zip(("", "negative_"), texts, strict=False):
        blank = prefix and not text and getattr(pipeline.config, "force_zeros_for_empty_prompt", False)
        parts: list[Tensor] = []
        for tokenizer, encoder in readers:
            ids = torch.tensor(rows_of(tokenizer, text, chunks))  # [chunks, 77]
            with torch.no_grad():
                hidden, pooled = encoded(encoder, ids, last=len(readers) == 1)
            hidden = hidden.flatten(0, 1)[None]  # [1, 77 chunks, d]
            parts.append(hidden * 0 if blank else hidden)
            if pooled is not None:
                arguments[f"{prefix}pooled_prompt_embeds"] = pooled[:1] * 0 if blank else pooled[:1]
        arguments[f"{prefix}prompt_embeds"] = torch.cat(parts, dim=-1)
    return arguments


def readers_of(pipeline: Any) -> list[tuple[Any, Any]]:
    """A pipeline's tokenizers with their text encoders, in the order in which their widths make up the context's."""
    readers = [(pipeline.tokenizer, pipeline.text_encoder)]
    if hasattr(pipeline, "text_encoder_2"):
        readers.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
    return readers


def contexts(pipeline: Any, texts: Sequence[str]) -> Tensor:
    """Texts of one chunk -> what the UNet gets for each, [n, 77, D] in float32 on the CPU.

    Raises:
        HostError: the pipeline has no text encoder, or a text is longer.
    """
    if getattr(pipeline, "text_encoder", None) is None or getattr(pipeline, "tokenizer", None) is None:
        raise HostError("The pipeline has no text encoder", "Load a model folder or checkpoint that holds one.")
    for text in texts:
        if chunks_of(pipeline.tokenizer, text) > 1:
            raise HostError(f"'{text[:40]}…' is too long for one chunk of the text encoder")
    encoded = [encode(pipeline, text, "", guided=False)["prompt_embeds"] for text in texts]
    return torch.cat(encoded).to("cpu", torch.float32)


class Staged:
    """The embeddings of a job whose prompts change on the way, for the callback at the end of a step.

    Args:
        pipeline: the one that runs.
    """

    def __init__(self, pipeline: Any, job: DiffusersJob) -> None:
        first = Prompts(0.0, job.prompt, job.negative_prompt)
        self._guided, self._batch = job.guidance > 1, job.batch
        self._starts = [0.0, *(one.start for one in job.later)]
        texts = [(one.prompt, one.negative_prompt) for one in (first, *job.later)]
        self._stages = [encode(pipeline, *pair, guided=self._guided) for pair in texts]
        # img2img begins where its strength says
        self._now = self._at(0.0 if job.init is None else 1 - job.strength)
        self.first = self._stages[self._now]

    def update(self, pipeline: Any, step: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the step after ``step`` takes: nothing new while the prompts stay as they are."""
        timesteps: Sequence[Any] = pipeline.scheduler.timesteps[-pipeline.num_timesteps :]
        if step + 1 >= len(timesteps):
            return {}
        number = self._at(progress_of(timesteps[step + 1], pipeline.scheduler.config.num_train_timesteps))
        if number == self._now:
            return {}
        self._now = number
        found = {"prompt_embeds": self._rows("prompt_embeds", state["prompt_embeds"])}
        if "add_text_embeds" in state:
            found["add_text_embeds"] = self._rows("pooled_prompt_embeds", state["add_text_embeds"])
        return found

    def _at(self, progress: float) -> int:
        return max(number for number, start in enumerate(self._starts) if start <= progress or number == 0)

    def _rows(self, name: str, like: Tensor) -> Tensor:
        """Rows as diffusers' pipelines hold them: the unconditional half first, each prompt for all pictures."""
        names = [f"negative_{name}", name] if self._guided else [name]
        return torch.cat([self._stages[self._now][one].repeat_interleave(self._batch, 0) for one in names]).to(like)


def person_words(pipeline: Any, prompt: str, batch: int, words: str = "") -> FoundWords:
    """Where person words stand in what ``encode`` makes of a prompt, for as many pictures of it.

    Args:
        words: the user's own, with commas between.
    """
    tokenizer = pipeline.tokenizer
    rows = rows_of(tokenizer, prompt, chunks_of(tokenizer, prompt))
    found = in_text(rows, lambda texts: [_tokens(tokenizer, text) for text in texts], words)
    return FoundWords(((found,),) * batch)


def find_spoken(pipeline: Any, job: DiffusersJob, people: Sequence[PromptPerson]) -> SpokenTexts:
    """Where the persons' words stand in what ``encode`` makes of a job's prompts.

    Raises:
        HostError: the prompt has no word for a person who needs one, or it moves.
    """
    tokenizer = pipeline.tokenizer
    texts = [job.prompt, *(one.prompt for one in job.later)]
    chunks = [rows_of(tokenizer, text, chunks_of(tokenizer, text)) for text in texts]
    stages = [in_tokens([one], lambda words: [_tokens(tokenizer, text) for text in words], people)[0] for one in chunks]
    found = SpokenTexts((tuple(same_always([stages], people)),) * job.batch)
    require(found, people)
    return found


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids


def chunks_of(tokenizer: Any, text: str) -> int:
    return max(1, -(-len(_tokens(tokenizer, text)) // _CHUNK))


def rows_of(tokenizer: Any, text: str, chunks: int) -> list[list[int]]:
    """As many rows of 77 tokens, each with its start and end, the rest padded."""
    tokens = _tokens(tokenizer, text)
    rows: list[list[int]] = []
    for start in range(0, chunks * _CHUNK, _CHUNK):
        row = [tokenizer.bos_token_id, *tokens[start : start + _CHUNK], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (_CHUNK + 2 - len(row)))
    return rows


def encoded(encoder: Any, ids: Tensor, last: bool) -> tuple[Tensor, Tensor | None]:
    """Hidden states [n, 77, d] of tokens [n, 77], normed from the last layer or plain from the last but one; pooled
    [n, P].

    Only an encoder with a projection pools; diffusers takes SDXL's pooled vector from it.
    """
    output = encoder(ids.to(encoder.device), output_hidden_states=True)
    hidden: Tensor = output.last_hidden_state if last else output.hidden_states[-2]
    pooled: Tensor | None = None if last else getattr(output, "text_embeds", None)
    return hidden, pooled
