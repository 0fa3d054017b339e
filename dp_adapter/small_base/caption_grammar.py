"""The grammar of the small base's captions: parses a caption into statements, and makes captions for an evaluation.

Every statement can be measured on a picture (`caption_check`). The grammar is that of ``tools/small_base/scenes.py``.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

from dp_adapter.errors import SettingsError

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "orange": (235, 140, 40),
    "yellow": (235, 215, 70),
    "green": (50, 150, 70),
    "blue": (50, 90, 200),
    "purple": (130, 60, 160),
    "pink": (240, 150, 180),
    "brown": (120, 80, 50),
    "white": (238, 238, 238),
    "grey": (135, 135, 135),
    "black": (28, 28, 28),
}
"""RGB in 0..255 of every colour that a background or clothes can have."""

PATTERNS = ("striped", "checkered", "dotted")
PLACES = ("on the left", "in the centre", "on the right")
HAIR = ("black", "brown", "blond", "grey")

Kind = Literal[
    "medium", "people", "size", "place", "smile", "glasses", "hair", "clothes", "background", "pattern"
]  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """One thing that a caption says.

    Attributes:
        value: ``color`` or ``grey`` (medium) · a number (people) · ``close-up`` or ``full body`` (size) · one of
            `PLACES` (place) · ``yes`` or ``no`` (smile, glasses) · one of `HAIR` or ``no`` (hair) · one of `COLOURS`
            (clothes, background) · one of `PATTERNS` or ``plain`` (pattern).
        where: of clothes, the place of the person who wears them; empty where there is one person.
    """

    kind: Kind
    value: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.value}" + (f" {self.where}" if self.where else "")


_HEAD = re.compile(
    r"(?P<size>close-up |full body )?(?P<medium>color|black and white) photo of "
    r"(?:(?P<two>two people)|a (?P<smile>smiling |serious )?person(?P<place> on the left| on the right)?)"
)
_CLOTHES = re.compile(
    r"(?:one person in )?(?P<colour>\w+) clothes(?: (?P<where>on the left|in the centre|on the right))?"
)


def parse_caption(caption: str) -> list[Statement]:
    """Parses a caption into its statements. A background's colour without a pattern states that it is plain.

    Raises:
        SettingsError: it is no caption of this grammar; names the part.
    """
    head, *parts = caption.strip().split(", ")
    match = _HEAD.fullmatch(head)
    if match is None:
        raise _grammar_error(head)
    found = [Statement("medium", "color" if match["medium"] == "color" else "grey")]
    found.append(Statement("people", "2" if match["two"] else "1"))
    if match["size"]:
        found.append(Statement("size", match["size"].strip()))
    if match["place"]:
        found.append(Statement("place", match["place"].strip()))
    if match["smile"]:
        found.append(Statement("smile", "yes" if match["smile"] == "smiling " else "no"))
    for part in parts:
        found += _parse_part(part)
    return found


def _parse_part(part: str) -> list[Statement]:
    if part in ("with glasses", "without glasses"):
        return [Statement("glasses", "yes" if part == "with glasses" else "no")]
    if part == "bald":
        return [Statement("hair", "no")]
    if part.endswith(" hair") and part.removesuffix(" hair") in HAIR:
        return [Statement("hair", part.removesuffix(" hair"))]
    clothes = _CLOTHES.fullmatch(part)
    if clothes and clothes["colour"] in COLOURS:
        return [Statement("clothes", clothes["colour"], clothes["where"] or "")]
    if part.endswith("background"):
        *words, _ = part.split(" ")
        pattern = words[0] if words and words[0] in PATTERNS else ""
        colour = words[1:] if pattern else words
        if len(colour) <= 1 and all(name in COLOURS for name in colour) and (pattern or colour):
            return [Statement("background", name) for name in colour] + [Statement("pattern", pattern or "plain")]
    raise _grammar_error(part)


def _grammar_error(part: str) -> SettingsError:
    example = "close-up color photo of a smiling person, with glasses, grey hair, red clothes, striped blue background"
    return SettingsError("prompts", f"'{part}' is not in the grammar of the small base", f"Write as in: {example}.")


@dataclass(frozen=True)
class CaptionFacts:
    """What is true of a person's photo; None where it cannot be told, so that no caption states it."""

    hair: str | None = None
    glasses: bool | None = None
    smiling: bool | None = None

    def contradict(self, chance: random.Random) -> CaptionFacts:
        """The contrary of each: another colour of hair, glasses or none, smiling or serious."""
        hair = None if self.hair is None else chance.choice([name for name in HAIR if name != self.hair])
        glasses, smiling = (None if fact is None else not fact for fact in (self.glasses, self.smiling))
        return CaptionFacts(hair, glasses, smiling)


def random_captions(seed: int, facts: CaptionFacts, count: int, conflict: bool = False) -> list[str]:
    """Random captions for one person, the same for the same seed.

    Framing, place, clothes and background vary as in training. The face is described as the photo has it, so that
    prompt and identity do not contradict each other; in a conflict it is described the other way round.
    """
    chance = random.Random(seed)  # noqa: S311 - a protocol, no secret
    return [_random_caption(chance, facts.contradict(chance) if conflict else facts) for _ in range(count)]


def _random_caption(chance: random.Random, facts: CaptionFacts) -> str:
    size = chance.choices(("close-up ", "", "full body "), (0.35, 0.5, 0.15))[0]
    place = "" if size == "close-up " else chance.choice((" on the left", "", " on the right"))
    # A mouth of five pixels cannot be judged.
    smiling = None if size == "full body " else facts.smiling
    smile = {True: "smiling ", False: "serious ", None: ""}[smiling]
    background, clothes = chance.sample(list(COLOURS), 2)
    pattern = chance.choices(("", *(f"{name} " for name in PATTERNS)), (0.55, 0.15, 0.15, 0.15))[0]
    parts = [f"{size}color photo of a {smile}person{place}"]
    if facts.glasses is not None:
        parts.append("with glasses" if facts.glasses else "without glasses")
    if facts.hair is not None:
        parts.append("bald" if facts.hair == "no" else f"{facts.hair} hair")
    return ", ".join([*parts, f"{clothes} clothes", f"{pattern}{background} background"])
