"""Several persons who share a picture by their words: which words those are, how they are read, and who acts where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dp_adapter import naming
from dp_adapter.core.text.sharing_by_words import Entity
from dp_adapter.errors import SettingsError
from dp_adapter.session.photos.reference_photos import words_of
from dp_adapter.session.regions.init_faces import persons_with_region
from dp_adapter.session.scene import Encode, Scene
from dp_adapter.settings import Reference, Region

_ANOTHER = " a"  # any further word
_CHANGED = 0.05  # of a token's length: far above rounding, far below the difference of two words


@dataclass(frozen=True)
class SharingWords:
    """How one person shares.

    Attributes:
        words: that mean the person; entity: the same as the base model reads them.
        in_region: whether they act in a region of their own besides.
    """

    words: str
    entity: Entity
    in_region: bool


def extend_regions(
    regions: Sequence[Region], persons: Sequence[int], inpaint: bool
) -> tuple[tuple[Region, ...], frozenset[int]]:
    """The regions with the whole picture for everybody who has none of their own, and who has one.

    Args:
        inpaint: whether there is an inpaint mask, which is everybody's.
    """
    if inpaint:
        return tuple(regions), frozenset(persons)
    having = persons_with_region(regions)
    further = tuple(Region(kind="full", identity=person) for person in persons if person not in having)
    return (*regions, *further), having


def read_words(
    references: Sequence[Reference], scene: Scene, persons: Sequence[int], in_region: frozenset[int]
) -> dict[int, SharingWords]:
    """The persons' words as the base model reads them.

    Args:
        in_region: persons with a region of their own.

    Raises:
        SettingsError: the host does not encode texts by itself, or not everybody has words.
    """
    if scene.encode is None:
        raise SettingsError(
            "sharing",
            "this host does not encode texts by itself, so persons cannot share by their words",
            "Use 'regions'.",
            "regions",
        )
    words = _choose_words(references, scene.words, persons)
    entities = {person: _read(scene.encode, words[person]) for person in persons}
    for person, entity in entities.items():
        if entity.tokens < 1:
            raise SettingsError(
                _field(references, person),
                f"the text encoder reads nothing in '{words[person]}'",
                "Give words of the prompt, such as 'woman in red'.",
            )
    return {person: SharingWords(words[person], entity, person in in_region) for person, entity in entities.items()}


def _choose_words(references: Sequence[Reference], prompt: Sequence[str], persons: Sequence[int]) -> dict[int, str]:
    """Each person's words: the first that came with their photos, else the prompt's next person word that is nobody's.

    Args:
        prompt: its words for single persons.

    Raises:
        SettingsError: the prompt has too few.
    """
    chosen = {person: words_of(references, person).split(",")[0].strip() for person in persons}
    free = list(prompt)
    for word in [word for words in chosen.values() for word in words.lower().split()]:
        if word in free:
            free.remove(word)
    for person, words in chosen.items():
        if not words and not free:
            raise SettingsError(
                _field(references, person),
                f"nothing in the prompt says who {naming.person(person)} is",
                "Give words of the prompt that mean this person, such as 'woman in red', or share by 'regions'.",
            )
        chosen[person] = words or free.pop(0)
    return chosen


def _field(references: Sequence[Reference], person: int) -> str:
    """Where the words of a person go."""
    number = next(n for n, one in enumerate(references) if one.identity == person)
    return f"references[{number}].words"


def _read(encode: Encode, words: str) -> Entity:
    """The words in a text of their own, as MIP-Adapter has them.

    How many tokens they have shows where another word behind them changes the context first: the text encoders are
    causal, so what comes later changes nothing before.
    """
    text, longer, empty = encode((words, words + _ANOTHER, ""))
    return Entity(text, empty, _first_change(text, longer) - 1)


def _first_change(text: Tensor, longer: Tensor) -> int:
    """Of two contexts [L, D], where they begin to differ; L if they do not."""
    changed = (text - longer).square().sum(-1) > _CHANGED**2 * text.square().sum(-1)
    indices = torch.nonzero(changed)
    return int(indices[0]) if len(indices) else len(text)
