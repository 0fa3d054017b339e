"""The protocol: who, which prompts, which arms, which seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dp_adapter.errors import PictureError, SettingsError
from dp_adapter.settings import Settings

Weights = Literal["whole", "no-blending", "bare"]
"""The adapter's file as it is · without the trained FFB · without trained TCA and FFB."""

BASE, ADD, DP = "base", "add", "dp"
PHOTOS = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True)
class Arm:
    """One way of making the pictures.

    Attributes:
        changes: fields of the request by dotted path, over those that all arms share.
        weights: which of the adapter's weights act.
    """

    name: str
    label: str
    changes: Mapping[str, object]
    weights: Weights = "whole"

    def make_request(self, settings: Settings, model: str, photo: Path) -> Settings:
        """The arm's request for one person.

        Args:
            model: path of the file with this arm's weights.
        """
        shared = settings.with_fields({"references": [{"image": str(photo)}], "model": model})
        return shared.with_fields(self.changes)


_EVERYWHERE: dict[str, object] = {"regions": [{"kind": "full"}]}
_NO_TEXT_PATHWAY: dict[str, object] = {
    "text_weight": 0.0,
    "text_emphasis": 0.0,
    "strict_text_region": False,
    "identity_guidance": 0.0,
}
_MASK_AS_GATE: dict[str, object] = {"gate.down": 1.0, "gate.middle": 1.0, "gate.up": 1.0}

ARMS = (
    Arm(BASE, "base model", {"enabled": False}),
    Arm(
        ADD,
        "plain add",
        {**_EVERYWHERE, **_NO_TEXT_PATHWAY, "span.start": 0.0, "curve": "", "free_parts": False},
        "bare",
    ),
    Arm(DP, "DP-Adapter", {}),
    Arm("no-tca", "without TCA", _NO_TEXT_PATHWAY),
    Arm("no-ffb", "without FFB", _MASK_AS_GATE, "no-blending"),
    Arm("no-regions", "without region masks", _EVERYWHERE),
    Arm("strict", "strict text region", {"strict_text_region": True}),
    Arm("mask", "region masks alone", {**_NO_TEXT_PATHWAY, **_MASK_AS_GATE}, "bare"),
    Arm("strict", "strict text region", {"strict_text_region": True}),
    Arm("guided", "identity guidance", {"identity_guidance": 0.7}),
)
"""Base model; decoupled attention in the whole picture from the first step on; the whole method; its ablations; the
two forms that leave the rest of the picture to the text, for one more row each of the call's or its conditional rows.
"""


def choose_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of these names, base model, plain add and DP-Adapter always among them, in the protocol's order.

    Raises:
        SettingsError: there is no such arm.
    """
    known = [arm.name for arm in ARMS]
    for name in names:
        if name not in known:
            raise SettingsError("arms", f"there is no arm '{name}'", f"Known are {', '.join(known)}.")
    return tuple(arm for arm in ARMS if arm.name in names or arm.name in (BASE, ADD, DP))


@dataclass(frozen=True)
class EvaluatedPerson:
    """One person: the photo that makes the pictures, and others of the same person to compare with."""

    name: str
    photo: Path
    others: tuple[Path, ...] = ()


def find_people(folder: Path, limit: int | None = None) -> tuple[EvaluatedPerson, ...]:
    """The people of a folder: ``NAME_a.jpg`` is the photo, ``NAME_b.jpg`` and so on are others; or one photo each.

    Raises:
        PictureError: there is no such folder, no photo in it, or a person without a first photo.
    """
    if not folder.is_dir():
        raise PictureError(f"There is no folder {folder}", "Give a folder of photos, NAME_a.jpg and NAME_b.jpg.")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PHOTOS:
            name, _, letter = path.stem.rpartition("_")
            lettered = bool(name) and len(letter) == 1 and letter.isalpha()
            found.setdefault(name if lettered else path.stem, {})[letter.lower() if lettered else "a"] = path
    if not found:
        raise PictureError(f"There is no photo in {folder}", f"Put {', '.join(sorted(PHOTOS))} files there.")
    people: list[EvaluatedPerson] = []
    for name, photos in found.items():
        if "a" not in photos:
            raise PictureError(f"{name} has no first photo in {folder}", f"Name it {name}_a.jpg.")
        people.append(EvaluatedPerson(name, photos["a"], tuple(photos[key] for key in sorted(photos) if key != "a")))
    return tuple(people[:limit])


@dataclass(frozen=True)
class Prompt:
    """What a picture is made from, and the text it is judged by (the word of the identity stripped)."""

    text: str
    judged: str


def fill_template(template: str, word: str, judged: str = "person") -> Prompt:
    """A template with ``{person}``; one without is taken as it is."""
    return Prompt(template.replace("{person}", word), template.replace("{person}", judged))


@dataclass(frozen=True)
class EvaluationPlan:
    """The whole evaluation.

    Attributes:
        prompts: of each person, in the order of ``people``; equally many.
        seeds: how many pictures of each prompt.
        first_seed: of all.
    """

    people: tuple[EvaluatedPerson, ...]
    prompts: tuple[tuple[Prompt, ...], ...]
    seeds: int
    first_seed: int
    arms: tuple[Arm, ...]

    def seed(self, person: int, prompt: int) -> int:
        """The first seed of one person and prompt: the same in all arms, another for each person.

        Persons do not share pictures of the base model, so that they can be drawn again independently.
        """
        return self.first_seed + (person * len(self.prompts[person]) + prompt) * self.seeds

    @property
    def pictures(self) -> int:
        """How many are made in all."""
        return sum(map(len, self.prompts)) * self.seeds * len(self.arms)
