"""What the files in the model folders are: by keys and shapes, without loading their numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dp_adapter.cache import Cache
from dp_adapter.errors import WeightsError
from dp_adapter.naming import printable
from dp_adapter.weights import foreign_files, formats
from dp_adapter.weights.checkpoint import BASE_NAMES, Base
from dp_adapter.weights.damage import explain
from dp_adapter.weights.files import open_weights
from dp_adapter.weights.library import Library

_SHARED_FOLDERS = ("ControlNet", "controlnet")  # most of what lies there is no adapter and needs no mention


@dataclass(frozen=True)
class ModelFacts:
    """One file.

    Attributes:
        name: as a request gives it.
        title: its family in words; empty when it cannot be used.
        base: what it was made for; None when it cannot be used.
        variants: what it may be where its keys cannot tell; more than one has to be asked.
        answer: the variant that was said before, for a file that has to be asked about.
        personal: whether it is a personalised identity, which can also act beside a model.
        problem: why it cannot be used, in words; empty when it can.
    """

    name: str
    title: str = ""
    base: Base | None = None
    variants: tuple[str, ...] = ()
    answer: str | None = None
    problem: str = ""
    personal: bool = False

    def misfit(self, base: Base | None) -> str:
        """Why it cannot be used with a loaded checkpoint of this base, in few words; empty when it can."""
        if self.base is None:
            return "cannot be used"
        return f"for {BASE_NAMES[self.base]}" if base is not None and base != self.base else ""

    @property
    def question(self) -> tuple[str, ...]:
        """The variants to choose from when the user has to say which it is; empty when nothing is open."""
        return self.variants if len(self.variants) > 1 and self.answer is None else ()


class ModelListing:
    """The files of a library, each looked into once while it stays unchanged."""

    def __init__(self, library: Library, limit: int = 256) -> None:
        self._library = library
        self._seen: Cache[ModelFacts | None] = Cache(limit)

    def listed(self, base: Base | None) -> list[ModelFacts]:
        """Every adapter: those for ``base`` first, then the others, then what cannot be used; each group by name.

        Files in folders shared with other extensions are left out where they are no adapters.
        """
        looked = [self._look(name, path) for name, path in self._library.files().items()]
        known = [facts for facts in looked if facts is not None]
        return sorted(known, key=lambda facts: (bool(facts.problem), bool(facts.misfit(base)), facts.name.lower()))

    def facts(self, name: str) -> ModelFacts:
        """What one file is, with the answer that was given about it.

        Raises:
            WeightsError: there is no such model.
        """
        path = self._library.resolve(name)
        facts = self._look(path.name, path) or ModelFacts(path.name, problem="no identity adapter")
        if len(facts.variants) < 2:
            return facts
        answer = self._library.variant(path)
        return replace(facts, answer=answer if answer in facts.variants else None)

    def _look(self, name: str, path: Path) -> ModelFacts | None:
        """What one file is, whatever it is: a list goes on where one of its files cannot be read."""
        shared = any(part in _SHARED_FOLDERS for part in path.parts)
        try:
            stat = path.stat()
            return self._seen.get((path, stat.st_size, stat.st_mtime_ns), lambda: _look(name, path, shared))
        except Exception as error:
            # It vanished, may not be opened, or holds what no reader foresees. Not kept, so that it is tried again.
            problem = WeightsError(f"cannot be read ({explain(error)})").problem
            return None if shared else ModelFacts(printable(name), problem=problem)


def _look(name: str, path: Path, shared: bool) -> ModelFacts | None:
    if name != printable(name):
        return ModelFacts(printable(name), problem="its name cannot be written in a request; rename it")
    try:
        file = open_weights(path)
        row = formats.recognise(file)
        checkpoint = None if row is None else row.read(file)
    except WeightsError as error:
        return None if shared else ModelFacts(name, problem=error.problem.removeprefix(f"{name} "))
    if checkpoint is not None:
        return ModelFacts(name, checkpoint.title, checkpoint.base, checkpoint.variants, personal=checkpoint.personal)
    if shared:
        return None
    return ModelFacts(name, problem=f"no identity adapter: {foreign_files.describe(file.tensors)}")
