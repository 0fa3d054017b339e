"""Where the persons' words stand in the tokens of a batch's prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp_adapter import naming
from dp_adapter.errors import HostError
from dp_adapter.hosts.prompts.person_words import PERSON, Tokenize
from dp_adapter.hosts.prompts.prompt_persons import Phrase, WordPosition, own_places, phrases_of, shared_out

if TYPE_CHECKING:
    from dp_adapter.core.text.text_side import LearnedChunk, Positions, PromptPerson
    from dp_adapter.core.types import Row


def in_tokens(
    texts: Sequence[Sequence[Sequence[int]]], tokenize: Tokenize, people: Sequence[PromptPerson]
) -> list[dict[int, Positions]]:
    """Where the persons' words stand: per text of AND, per person as many positions as the word has to take.

    Args:
        texts: each text's tokens as the encoder gets them, in chunks of 77.
        tokenize: texts to tokens, without start and end, as the texts' own were made.
    """
    flat = [[token for chunk in chunks for token in chunk] for chunks in texts]
    words = list(zip(PERSON, tokenize(list(PERSON)), strict=True))
    places = [[place for _, ids in words for place in _stands(tokens, (), ids, ())] for tokens in flat]
    phrases = {one.person: [_ids(phrase, tokenize) for phrase in phrases_of(one.words)] for one in people}
    own = [
        own_places({person: [p for ids in tried for p in _stands(tokens, *ids)] for person, tried in phrases.items()})
        for tokens in flat
    ]
    needed = {one.person: one.tokens for one in people}
    found_all = shared_out(places, own, people)
    return [
        {person: tuple(end - 1 for end in place.steps[: needed[person]]) for person, place in whose.items()}
        for whose in found_all
    ]


def _ids(phrase: Phrase, tokenize: Tokenize) -> Sequence[Sequence[int]]:
    return tokenize([phrase.before, phrase.word, phrase.after])


def _stands(
    tokens: Sequence[int], before: Sequence[int], word: Sequence[int], after: Sequence[int]
) -> list[WordPosition]:
    """Where a word stands between others, any number of times."""
    found: list[WordPosition] = []
    at = 0
    while word and at <= len(tokens) - len(word):
        end = at
        while list(tokens[end : end + len(word)]) == list(word):
            end += len(word)
        around = list(tokens[max(0, at - len(before)) : at]) == list(before)
        if end > at and around and list(tokens[end : end + len(after)]) == list(after):
            found.append(WordPosition(at, end, tuple(range(at + len(word), end + 1, len(word)))))
        at = max(end, at + 1)
    return found


@dataclass(frozen=True)
class SpokenTexts:
    """Where the persons' words stand in a batch's texts; a ``PersonWords`` for an attachment.

    Attributes:
        texts: per picture, per text that AND joins, per person the positions.
        learned_chunks: see ``PersonWords``.
    """

    texts: tuple[tuple[Mapping[int, Positions], ...], ...]
    learned_chunks: tuple[LearnedChunk, ...] = ()

    @property
    def prompts(self) -> int:
        """How many texts AND joins, as far as all pictures have them."""
        return min(map(len, self.texts), default=1)

    def positions(self, row: Row, person: int) -> Positions:
        """See ``PersonWords``."""
        parts = self.texts[row.sample] if row.sample < len(self.texts) else ()
        if row.part is not None:
            return parts[row.part].get(person, ()) if row.part < len(parts) else ()
        places = {part.get(person, ()) for part in parts}
        if places <= {()}:
            return ()
        if len(parts) == 1 or len(places) > 1:
            raise HostError(
                "It is not known which text a row of the sampler has, so neither is the place of the person's word: "
                "prompts that AND joins come in calls of their own, or an extension's regions have texts of their own",
                "Do without AND or such regions, or use an identity that does not act through a word of the prompt.",
            )
        return places.pop()


def require(texts: SpokenTexts, people: Sequence[PromptPerson]) -> None:
    """Raises HostError where a picture has no word for a person who cannot do without, or too few of it."""
    for one in people:
        for parts in texts.texts if one.needed else ():
            counts = [len(part[one.person]) for part in parts if one.person in part]
            if counts and min(counts) < one.tokens:
                raise HostError(
                    f"The word for {naming.person(one.person)} has to stand {one.tokens} times in a row, and the "
                    f"prompt has it {min(counts)} times, or a chunk of the prompt ends there",
                    "Put the word at the beginning of the prompt, outside of what changes on the way.",
                )
            if not counts:
                raise HostError(
                    f"The prompt has no word for {naming.person(one.person)}"
                    + (f" ('{one.words}')" if one.words.strip() else ""),
                    "Write one (man, woman, girl, boy, person …) for each person, in their order, or say in the "
                    "photo's words which words of the prompt mean them.",
                )


def require_one_token(one: PromptPerson, positions: Positions) -> None:
    """Raises HostError where the word of a person with learned vectors is several tokens, of which one would go."""
    if list(positions) != list(range(positions[0], positions[0] + len(positions))):
        raise HostError(
            f"The word for {naming.person(one.person)} is several tokens for the text encoder, and learned words take "
            "the place of one",
            "Write man, woman or person, or say in the photo's words which other word it is.",
        )


def same_always(
    stages: Sequence[Sequence[Mapping[int, Positions]]], people: Sequence[PromptPerson]
) -> list[dict[int, Positions]]:
    """Where the words stand in texts that change on the way: per text of AND, per person.

    Args:
        stages: of each text of AND, where the words stand in each of its stages.

    Raises:
        HostError: a word that is needed moves.
    """
    found: list[dict[int, Positions]] = []
    for one in stages:
        first, *others = one
        moved = [p for p in people if any(other.get(p.person) != first.get(p.person) for other in others)]
        for person in moved:
            if person.needed:
                raise HostError(
                    f"The word for {naming.person(person.person)} does not stand at one place while the prompt changes",
                    "Put it before what changes on the way ([…:…:0.5]).",
                )
        found.append({k: v for k, v in first.items() if k not in {p.person for p in moved}})
    return found
