"""Several persons who share a picture by their words: whether they do, which words those are, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dp_adapter import naming
from dp_adapter.core.text.sharing_by_words import Entity, Sharing
from dp_adapter.errors import SettingsError
from dp_adapter.session.assembly import prompt_persons
from dp_adapter.session.regions.requested_regions import PersonRegion
from dp_adapter.session.scene import Encode, Scene
from dp_adapter.settings import Region, Settings
from dp_adapter.weights.checkpoint import Checkpoint

_ANOTHER = " a"  # any further word
_CHANGED = 0.05  # of a token's length: far above rounding, far below the difference of two words


@dataclass(frozen=True)
class Shared:
    """How one person shares.

    Attributes:
        words: that mean the person.
        placed: whether they act in a region of their own besides.
    """

    words: str
    entity: Entity
    placed: bool

    def told(self, region: str) -> str:
        """Where the person acts, in words."""
        attention = f"the attention of '{self.words}'"
        return f"{region}, by {attention}" if self.placed else attention


def sharing_of(settings: Settings, checkpoint: Checkpoint, persons: int) -> Sharing:
    """How the persons share; one alone has a region.

    Raises:
        SettingsError: the checkpoint's identities act where there are no words yet.
    """
    asked = checkpoint.sharing if settings.sharing == "auto" else settings.sharing
    if persons < 2 or asked == "regions":
        return "regions"
    if checkpoint.mode == "gated":
        raise SettingsError(
            "sharing",
            f"{checkpoint.title} acts before the prompt's words are read, so persons cannot share by them",
            "Use 'regions'.",
            "regions",
        )
    return "words"


def everywhere(settings: Settings, scene: Scene, persons: Sequence[int]) -> tuple[Settings, frozenset[int]]:
    """The request with the whole picture for everybody who has no region of their own, and who has one.

    An inpaint mask is everybody's.
    """
    if scene.inpaint is not None:
        return settings, frozenset(persons)
    placed = frozenset(region.identity for region in settings.regions if region.op == "add")
    further = tuple(Region(kind="full", identity=person) for person in persons if person not in placed)
    return replace(settings, regions=(*settings.regions, *further)), placed


def shared(settings: Settings, scene: Scene, placed: frozenset[int], persons: Sequence[int]) -> dict[int, Shared]:
    """The persons' words as the base model reads them.

    Args:
        placed: persons with a region of their own.

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
    words = words_of(settings, scene, persons)
    texts = {person: _read(scene.encode, words[person]) for person in persons}
    for person, entity in texts.items():
        if entity.tokens < 1:
            raise SettingsError(
                _field(settings, person),
                f"the text encoder reads nothing in '{words[person]}'",
                "Give words of the prompt, such as 'woman in red'.",
            )
    return {person: Shared(words[person], entity, person in placed) for person, entity in texts.items()}


def words_of(settings: Settings, scene: Scene, persons: Sequence[int]) -> dict[int, str]:
    """Each person's words: the first that came with their photos, else the prompt's next person word that is nobody's.

    Raises:
        SettingsError: the prompt has too few.
    """
    told = {person: prompt_persons.words_of(settings, person).split(",")[0].strip() for person in persons}
    given = [word for words in told.values() for word in words.lower().split()]
    free = list(scene.words)
    for word in given:
        if word in free:
            free.remove(word)
    for person, words in told.items():
        if not words and not free:
            raise SettingsError(
                _field(settings, person),
                f"nothing in the prompt says who {naming.person(person)} is",
                "Give words of the prompt that mean this person, such as 'woman in red', or share by 'regions'.",
            )
        told[person] = words or free.pop(0)
    return told


def doubts(shared: Mapping[int, Shared]) -> tuple[str, ...]:
    """What the user has to know about the words."""
    persons: dict[str, list[int]] = {}
    for person, one in shared.items():
        persons.setdefault(one.words.lower(), []).append(person)
    return tuple(
        f"{naming.begun(' and '.join(map(naming.person, alike)))} have the same words ('{words}'), which cannot "
        "tell them apart: each gets a part of both. Give each their own, such as 'woman in red'."
        for words, alike in persons.items()
        if len(alike) > 1
    )


def delayed(
    areas: Mapping[int, PersonRegion], shared: Mapping[int, Shared], checkpoint: Checkpoint
) -> dict[int, PersonRegion]:
    """The areas, of which those by words alone are not known from the start, unless the checkpoint was trained so.

    At first a word looks everywhere, so that each place would get something of everybody.
    """
    trained = checkpoint.sharing == "words"
    return {
        person: replace(area, known=area.known and (trained or person not in shared or shared[person].placed))
        for person, area in areas.items()
    }


def _field(settings: Settings, person: int) -> str:
    """Where the words of a person go."""
    number = next(n for n, one in enumerate(settings.references) if one.identity == person)
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
    places = torch.nonzero(changed)
    return int(places[0]) if len(places) else len(text)
