"""Persons who act through words of the prompt: what they change in the text, kept between generations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor

from dp_adapter.cache import Cache
from dp_adapter.core.text.text_side import Lock, PromptPerson, TextIdentity
from dp_adapter.core.types import Features
from dp_adapter.session.photos.reference_photos import words_of
from dp_adapter.settings import Reference, TextSide
from dp_adapter.weights.checkpoint import Checkpoint, RecipeOptions


class TextIdentities:
    """Fusions of persons, by their features."""

    def __init__(self) -> None:
        self._kept: Cache[TextIdentity | None] = Cache(4)  # persons

    def forget(self) -> None:
        self._kept.clear()

    def of(self, checkpoint: Checkpoint, features: Features, options: RecipeOptions) -> TextIdentity | None:
        """What a person changes in the text's context; None for families that leave it alone.

        No fusion asks how the base model encodes texts, so ``options.encode`` does not count.

        Raises:
            WeightsError: features are missing, or of another width.
        """
        if checkpoint.fusion is None:
            return None
        stat = checkpoint.path.stat()
        key = (checkpoint.path, stat.st_size, stat.st_mtime_ns, replace(options, encode=None), _digest(features))
        return self._kept.get(key, lambda: checkpoint.on_text(features, options))


def join(person: TextIdentity | None, personal: TextIdentity | None) -> TextIdentity | None:
    """A model's fusion and then a personalised identity's; both act from where the model's does."""
    if person is None or personal is None:
        return person if personal is None else personal

    def fuse(context: Tensor, positions: Sequence[int]) -> Tensor:
        return personal.fuse(person.fuse(context, positions), positions)

    return replace(person, fuse=fuse)


def weigh_text(identity: TextIdentity | None, asked: TextSide, region: float) -> TextIdentity | None:
    """What a person changes in the text's context, as the request wants it.

    Args:
        region: weight of the person's region; 0 where the identity is switched off.
    """
    if identity is None:
        return None
    lock = identity.lock if asked.lock == "auto" else cast(Lock, asked.lock)
    return replace(identity, lock=lock, weight=identity.weight * asked.weight * region)


def prompt_person(references: Sequence[Reference], person: int, identity: TextIdentity) -> PromptPerson:
    """How prompts have to speak of a person."""
    words = words_of(references, person) or identity.word
    return PromptPerson(person, words, identity.tokens, identity.needs_word, identity.trigger, identity.learned)


def _digest(features: Features) -> str:
    sha = hashlib.sha256()
    for name, value in vars(features).items():
        if isinstance(value, Tensor):
            sha.update(f"{name}{tuple(value.shape)}".encode())
            sha.update(value.contiguous().numpy().tobytes())
    return sha.hexdigest()
