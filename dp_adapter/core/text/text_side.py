"""Identities on the text side: what a person changes in the text's context, and which keys and values follow it.

At a site the text attention with the changed context is Z'_t = Attn(Q, K', V'). In the person's region the pathway adds
G s (Z'_t - Z_t), so that it composes with regions, schedules and the identity attention; M = 1 and s = 1 give exactly
the changed context of the published systems. Only conditional rows have a person's word.

Locks: ``key`` (Perfusion, arXiv 2305.01644) takes the keys from the unchanged context, so that the word draws attention
as its class does, and the values from the changed one; ``others`` (AlignIT, arXiv 2406.18893) takes keys and values of
every token but the person's from the unchanged context.

Shapes: R rows, L text tokens, D token width, r tokens that change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from dp_adapter.core.types import Row
from dp_adapter.errors import HostError
from dp_adapter.hints import command

Lock = Literal["none", "key", "others"]
Fuse = Callable[[Tensor, Sequence[int]], Tensor]
Positions = tuple[int, ...]

_CHUNK = 77  # tokens that a text encoder reads at once; longer texts are several of them
_SAME = 0.02  # of the largest number: half precision and its batches differ by less, texts by more
_KEPT = 8  # distinct texts whose changes are kept: prompts of a batch, parts of AND, stages of a prompt


@dataclass(frozen=True)
class TextIdentity:
    """One person on the text side.

    Attributes:
        fuse: (context [L, D] in float32 on the CPU, positions of the person's word in it, in order) -> context [L, D]
            with the person in it. Called once for each distinct text, and for each chunk of 77 tokens of it alone;
            the context must not be written to. Without positions it returns the context unchanged, unless it needs
            none.
        tokens: how many tokens the person's word takes; the word is repeated in the prompt until it has as many.
            ``fuse`` gets as many positions, the last token of each repetition, or none.
        lock: which keys and values stay those of the unchanged context.
        weight: strength s of this pathway.
        start: progress before which the context stays as it is, for families whose identity attention starts earlier.
        needs_word: whether it cannot act in a prompt without a word for the person.
        trigger: a word that users of the published system write behind the person's, which is taken out of prompts.
        learned: vectors [tokens, d] that take the place of the word's tokens at the text encoder's input, before
            ``fuse``; None for families that leave that input alone.
        word: that means the person when the request names none; empty for the person words of the prompt.
    """

    fuse: Fuse
    tokens: int = 1
    lock: Lock = "none"
    weight: float = 1.0
    start: float = 0.0
    needs_word: bool = True
    trigger: str = ""
    learned: Tensor | None = field(default=None, compare=False)
    word: str = ""


@dataclass(frozen=True, eq=False)
class LearnedChunk:
    """One chunk of a text as a host encodes it, with a person's word and with their learned vectors in its place.

    Attributes:
        person: number in the request.
        plain, learned: [77, D] in float32 on the CPU.
    """

    person: int
    plain: Tensor
    learned: Tensor


@dataclass(frozen=True)
class PromptPerson:
    """A person who acts through a word of the prompt, and what prompts have to say of them.

    Attributes:
        person: number in the request.
        words: the user's, with commas between alternatives; empty for the person words of the prompt in their order.
        tokens, needed, trigger, learned: as ``TextIdentity`` says.
    """

    person: int
    words: str = ""
    tokens: int = 1
    needed: bool = True
    trigger: str = ""
    learned: Tensor | None = field(default=None, compare=False)


class PersonWords(Protocol):
    """Where the persons' words stand in the texts of a generation."""

    @property
    def learned_chunks(self) -> Sequence[LearnedChunk]:
        """Of every chunk with the word of a person who has learned vectors."""
        ...

    def positions(self, row: Row, person: int) -> Positions:
        """Of a person's word in the text of a conditional row, in the text's own 77 n tokens; empty for none.

        Raises:
            HostError: the host does not say which of several texts the row has.
        """
        ...


@dataclass(frozen=True, eq=False)
class Change:
    """What one person changes in one text.

    Attributes:
        tokens: which, in order [r], on the CPU.
        delta: c' - c there, [r, D] in float32.
    """

    tokens: Tensor
    delta: Tensor


@dataclass(frozen=True, eq=False)
class _Text:
    """One distinct text.

    Attributes:
        positions: per identity the positions of its word in the host's text; words: the same in the context.
        context: [L, D].
    """

    positions: tuple[Positions, ...]
    words: tuple[Positions, ...]
    context: Tensor
    changes: dict[int, Change] = field(default_factory=dict[int, Change])


@dataclass(frozen=True)
class TextPart:
    """``length`` tokens of a text from ``start`` on, which are a row's inside an attention."""

    text: _Text
    start: int
    length: int


def compute_change(
    identity: TextIdentity, context: Tensor, words: Positions, learned_chunks: Sequence[LearnedChunk] = ()
) -> Change:
    """What a person changes in a context [L, D] with their word at some positions.

    Args:
        learned_chunks: the person's, where they have learned vectors.

    Raises:
        HostError: a chunk with their word is none of these.
    """
    plain = context.detach().to("cpu", torch.float32)
    step = _CHUNK if len(plain) % _CHUNK == 0 else len(plain)
    fused: list[Tensor] = []
    for start in range(0, len(plain), step):
        chunk, inside = plain[start : start + step], [one - start for one in words if start <= one < start + step]
        replaced = chunk if identity.learned is None or not inside else _replace_by_learned(chunk, learned_chunks)
        fused.append(identity.fuse(replaced, inside).to("cpu", torch.float32))
    delta = torch.cat(fused) - plain
    if identity.lock == "others":
        tokens = torch.tensor(words, dtype=torch.long)
    else:
        (tokens,) = torch.where(delta.any(1))
    return Change(tokens, delta[tokens])


def _replace_by_learned(chunk: Tensor, learned_chunks: Sequence[LearnedChunk]) -> Tensor:
    """A chunk [77, D] with learned vectors in the word's place. The nearest is taken: batches round differently."""
    near = [(float((one.plain - chunk).abs().max()), one) for one in learned_chunks if one.plain.shape == chunk.shape]
    distance, found = min(near, key=lambda one: one[0], default=(float("inf"), None))
    if found is None or distance > _SAME * float(chunk.abs().max()):
        raise HostError(
            "A text reaches the UNet other than the host encoded it, so the learned words of the personalised "
            "identity cannot take their place in it",
            "Switch off extensions that change encoded prompts, or use the words as an embedding "
            f"({command('personalise --export-embedding')}).",
        )
    return found.learned


def find_period(context: Tensor) -> int:
    """How many tokens of a context [L, D] are the text's own: Forge repeats it to the length of a longer text."""
    length = len(context)
    periods = [n for n in range(_CHUNK, length, _CHUNK) if length % n == 0]
    return next((n for n in periods if torch.equal(context[n:], context[:-n])), length)


def find_in_context(positions: Sequence[int], context: Tensor) -> list[int]:
    """Positions in a context [L, D], which hosts pad or cut, and Forge repeats."""
    length, period = len(context), find_period(context) if positions else len(context)
    return [one + shift for shift in range(0, length, period) for one in positions if one < period]


class TextContexts:
    """The persons' changes of a generation's texts, shared by the sites.

    Contexts stay the same over the steps unless the prompt has stages, so what is made of them is kept by their
    content, bounded. Within one call of the UNet a tensor is compared once.
    """

    def __init__(self, people: Sequence[tuple[int, TextIdentity] | None], words: PersonWords | None) -> None:
        """Raises HostError where a word is needed, and nobody says where it stands.

        Args:
            people: per identity of the injection the number of the person in the request, and what they change.
        """
        if words is None and any(one is not None and one[1].needs_word for one in people):
            raise HostError("An identity acts through a word of the prompt, and nobody says where the words stand")
        self._people = tuple(people)
        self._words = words
        self._texts: list[_Text] = []  # latest first
        self._outer: Tensor | None = None  # contexts of the call of the UNet [R, L, D]
        self._rows: dict[Row, _Text] = {}
        self._starts: dict[object, int] = {}

    def enter(self) -> None:
        """A call of the UNet begins."""
        self._outer = None

    def note_texts(self, rows: Sequence[Row], context: Tensor) -> None:
        """Takes note of the texts [R, L, D] that the rows of a call have, as an attention gets them."""
        if self._outer is not None and _memory_of(self._outer) == _memory_of(context):
            return
        self._outer = context
        self._starts.clear()
        self._rows = {row: self._text(row, one) for row, one in zip(rows, context, strict=True) if row.kind == "cond"}

    def find_part(self, row: Row, context: Tensor, number: int) -> TextPart:
        """The part of a conditional row's text that an inner row has.

        Args:
            context: [R, l, D] of the inner rows, which an extension may have cut out of the texts (a region's chunks);
            number: of the row in it.

        Raises:
            HostError: the row has a text that nobody knows.
        """
        assert self._outer is not None
        text, own = self._rows[row], context[number]
        if context.shape == self._outer.shape:
            return TextPart(text, 0, len(own))
        shared = context.untyped_storage().data_ptr() == self._outer.untyped_storage().data_ptr()
        key = (row, _memory_of(own))
        start = self._starts[key] if shared and key in self._starts else _find_start(own, text.context)
        if start is None:
            raise HostError(
                "Another extension gives parts of the picture texts of their own (Forge Couple, for instance), in "
                "which the person's word is not known",
                "Switch it off, or use an identity that does not act through a word of the prompt.",
            )
        if shared:
            self._starts[key] = start
        return TextPart(text, start, len(own))

    def of(self, number: int) -> TextIdentity:
        """The text side of identity ``number`` of the injection."""
        person = self._people[number]
        assert person is not None
        return person[1]

    def change(self, text: _Text, number: int) -> Change:
        """What identity ``number`` of the injection changes in a text."""
        if number not in text.changes:
            words, learned_chunks = text.words[number], self._learned_chunks(number)
            text.changes[number] = compute_change(self.of(number), text.context, words, learned_chunks)
        return text.changes[number]

    def _learned_chunks(self, number: int) -> list[LearnedChunk]:
        """Those of identity ``number`` of the injection."""
        person = self._people[number]
        given = () if self._words is None or person is None or person[1].learned is None else self._words.learned_chunks
        return [one for one in given if person is not None and one.person == person[0]]

    def _text(self, row: Row, context: Tensor) -> _Text:
        positions = tuple(
            () if one is None or self._words is None else self._words.positions(row, one[0]) for one in self._people
        )
        for text in self._texts:
            same = (
                text.positions == positions
                and text.context.dtype == context.dtype
                and text.context.shape == context.shape
            )
            if same and torch.equal(text.context, context):
                self._texts.remove(text)
                break
        else:
            words = tuple(tuple(find_in_context(one, context)) for one in positions)
            text = _Text(positions, words, context.detach().clone())
        self._texts = [text, *self._texts[: _KEPT - 1]]
        return text


def _memory_of(x: Tensor) -> tuple[object, ...]:
    return x.data_ptr(), x.shape, x.stride(), x.dtype


def _find_start(part: Tensor, whole: Tensor) -> int | None:
    """Where a context [l, D] of whole chunks stands in a longer one [L, D]; None where it does not."""
    starts = range(0, len(whole) - len(part) + 1, _CHUNK)
    return next((start for start in starts if torch.equal(whole[start : start + len(part)], part)), None)
