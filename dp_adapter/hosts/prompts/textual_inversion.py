"""Learned words: vectors in place of tokens at a text encoder's input, as textual inversion puts them there.

One pass for training, which goes back through it, and for pictures: both see the same numbers.
Shapes: n chunks of 77 tokens, k learned vectors, d the encoder's input width (with two encoders their widths together).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dp_adapter.core.text.text_side import LearnedChunk, Positions, PromptPerson
from dp_adapter.errors import HostError
from dp_adapter.hosts.pipelines.diffusers_job import DiffusersJob
from dp_adapter.hosts.prompts.encode_prompts import chunks_of, encoded, readers_of, rows_of
from dp_adapter.hosts.prompts.person_words import CHUNK
from dp_adapter.hosts.prompts.word_positions import SpokenTexts, require_one_token


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts as the encoders of a pipeline read them, chunk after chunk.

    Attributes:
        ids: per encoder [n, 77].
        places: number of the learned vector that stands there [n, 77], -1 for none.
    """

    ids: tuple[Tensor, ...]
    places: Tensor

    def __getitem__(self, rows: Tensor) -> Texts:
        """Some of the chunks, by their numbers [m]."""
        return Texts(tuple(one[rows] for one in self.ids), self.places[rows])

    @property
    def plain(self) -> Texts:
        """The same without the vectors."""
        return Texts(self.ids, torch.full_like(self.places, -1))


def read(pipeline: Any, texts: Sequence[str], positions: Sequence[Positions]) -> Texts:
    """Texts with places for learned vectors.

    Args:
        positions: per text where the vectors stand in its own 77 m tokens, in their order.
    """
    readers = readers_of(pipeline)
    counts = [chunks_of(readers[0][0], text) for text in texts]
    ids = [
        torch.tensor([row for text, count in zip(texts, counts, strict=True) for row in rows_of(one, text, count)])
        for one, _ in readers
    ]
    places = torch.full_like(ids[0], -1)
    start = 0
    for count, own in zip(counts, positions, strict=True):
        for number, position in enumerate(own):
            places[start + position // CHUNK, position % CHUNK] = number
        start += count
    return Texts(tuple(ids), places)


def widths(pipeline: Any) -> list[int]:
    """Input widths of a pipeline's text encoders."""
    return [int(encoder.get_input_embeddings().weight.shape[1]) for _, encoder in readers_of(pipeline)]


def encode(pipeline: Any, texts: Texts, vectors: Tensor) -> Tensor:
    """What the UNet gets for texts with learned vectors [k, d] in their places: [n, 77, D], on the encoders' device.

    Gradients reach the vectors.

    Raises:
        HostError: the vectors are of another width than the encoders' inputs.
    """
    wanted = widths(pipeline)
    if vectors.shape[-1] != sum(wanted):
        raise HostError(
            f"The learned words are {vectors.shape[-1]} wide, the text encoder takes {sum(wanted)}",
            "Choose a personalised identity that was trained for this base model.",
        )
    readers = readers_of(pipeline)
    hidden: list[Tensor] = []
    for (_, encoder), ids, own in zip(readers, texts.ids, torch.split(vectors, wanted, dim=-1), strict=True):
        with _at_input(encoder, texts.places, own):
            hidden.append(encoded(encoder, ids, last=len(readers) == 1)[0])
    return torch.cat(hidden, dim=-1)


@contextmanager
def _at_input(encoder: Any, places: Tensor, vectors: Tensor) -> Generator[None]:
    """While it lasts, the encoder's table of embeddings answers with the vectors [k, d] at their places [n, 77]."""

    def put(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        at = places.to(output.device)
        return torch.where((at >= 0)[..., None], vectors.to(output)[at.clamp(min=0)], output)

    handle = encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def spelled(pipeline: Any, job: DiffusersJob, people: Sequence[PromptPerson], found: SpokenTexts) -> SpokenTexts:
    """The same places, with what a pipeline encodes for each chunk in which a person's learned words stand.

    Args:
        found: of ``job``, which has each person's word as often as they have vectors.

    Raises:
        HostError: the vectors do not fit the text encoder, or the word is made of several tokens.
    """
    spellings: list[LearnedChunk] = []
    for one in people:
        positions = found.texts[0][0].get(one.person, ())
        if one.learned is None or not positions:
            continue
        require_one_token(one, positions)
        for prompt in dict.fromkeys([job.prompt, *(stage.prompt for stage in job.later)]):
            texts = read(pipeline, [prompt], [positions])
            with torch.no_grad():
                plain, learned = (encode(pipeline, each, one.learned).float().cpu() for each in (texts.plain, texts))
            chunks = sorted({position // CHUNK for position in positions})
            spellings += [LearnedChunk(one.person, plain[chunk], learned[chunk]) for chunk in chunks]
    return replace(found, learned_chunks=tuple(spellings))
