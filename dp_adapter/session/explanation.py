"""What happened and why, as plain values that can be shown, written to a file or put into a picture's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dp_adapter import naming
from dp_adapter.modes import ModeWords


@dataclass(frozen=True)
class Photo:
    """One reference photo.

    Attributes:
        digest: SHA-256 of its decoded content, first 16 hex digits.
        faces: how many were found; ``chosen`` counts from the left.
        quality: 0..1; ``warnings`` say in words what lowers it.
        agreement: mean cosine to the person's other photos; None for a single photo.
        identity: the saved identity that its vectors come from; None for a photo that is here.
        number: in the request's list; place: in the saved identity. Both count from 0.
    """

    digest: str
    faces: int
    chosen: int | None
    box: tuple[float, float, float, float] | None
    quality: float | None
    warnings: tuple[str, ...] = ()
    agreement: float | None = None
    identity: str | None = None
    number: int = 0
    place: int = 0

    @property
    def name(self) -> str:
        """For people."""
        here = naming.photo(self.number)
        return here if self.identity is None else f"{here} ('{self.identity}', its {naming.photo(self.place)})"


@dataclass(frozen=True)
class PersonExplanation:
    """One identity: its photos, how they were joined, and where it acts.

    Attributes:
        number: of the person, as in the request, from 0.
        tokens: number of identity tokens.
        region: where its region comes from, in words.
        coverage: share of the picture inside the region.
        word: which word of the prompt they act through, in words; empty for none.
        looks_at: which photo the picture's self-attention looks at, in words; empty for none.
    """

    number: int
    photos: tuple[Photo, ...]
    combine: str
    encoders: tuple[str, ...]
    tokens: int
    region: str
    coverage: float
    word: str = ""
    looks_at: str = ""


@dataclass(frozen=True)
class Explanation:
    """A whole generation.

    Attributes:
        form: of the identity attention; form_mb: what its factors take in MB, 0 where it has none.
        mode_lines: what the mode does, in sentences.
        words: what it adds to the prompts.
        guidance: of the identity, apart from the prompt's; None where it is not apart.
        idle: why nothing of the request acts, in few words; empty where something does.
        left_out: which photos are not used, a sentence each.
        used: by dotted path, what automatic values stood for whose meaning depends on what is installed here.
    """

    active: bool
    model: str = ""
    family: str = ""
    base: str = ""
    blend: str = ""
    form: str = ""
    form_mb: float = 0.0
    weight: float = 0.0
    span: tuple[float, float] = (0.0, 1.0)
    lora: float = 0.0
    guidance: float | None = None
    persons: tuple[PersonExplanation, ...] = ()
    notes: tuple[str, ...] = ()
    mode: str = "portrait"
    mode_lines: tuple[str, ...] = ()
    words: tuple[ModeWords, ...] = ()
    idle: str = ""
    left_out: tuple[str, ...] = ()
    used: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The explanation in sentences, most important first."""
        if not self.active:
            return ["The adapter was off: the picture is the base model's own.", *self.notes]
        lines = [
            f"{self.family} '{self.model}' ({self.base}), weight {self.weight:g} from {self.span[0]:g} to "
            f"{self.span[1]:g}, blend '{self.blend}', {self.form} form"
            + (f" in {self.form_mb:.0f} MB" if self.form_mb >= 1 else "")
            + (f", LoRA {self.lora:g}" if self.lora else "")
            + (f", identity guidance {self.guidance:g}" if self.guidance else ""),
            *self.mode_lines,
        ]
        for person in self.persons:
            lines.append(
                f"{naming.capitalise(naming.person(person.number))}: {len(person.photos)} photo(s){_of_saved(person)}, "
                f"joined by {person.combine}, {person.tokens} tokens; "
                f"acts in {person.region}, {person.coverage:.0%} of the picture"
                + (f", through {person.word}" if person.word else "")
                + (f", with {person.looks_at}" if person.looks_at else "")
            )
            for photo in person.photos:
                lines += [f"  {photo.name}: {warning}" for warning in photo.warnings]
        return [*lines, *self.notes]


def _of_saved(person: PersonExplanation) -> str:
    """Which of the photos are known from saved identities only."""
    names = [photo.identity for photo in person.photos if photo.identity is not None]
    counted = [f"{names.count(name)} of saved identity '{name}'" for name in dict.fromkeys(names)]
    return f" ({', '.join(counted)})" if counted else ""
