"""What the demo shows, as data: people, prompts, arms, edit modes and weights. Captions are those of the small base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from dp_adapter.settings import Reference, Settings

Fields = Mapping[str, object]

SIDE = 128
STEPS = 20
GUIDANCE = 3.0
SEED = 7
WEIGHT = 0.8
SECTIONS = ("arms", "modes", "sweep")

ARMS: Mapping[str, Fields] = MappingProxyType(
    {
        "base model": {"enabled": False},
        # the same tokens as IP-Adapter adds them: in the whole picture, from the first step, nothing for the text
        "plain add": {
            "regions": [{"kind": "full"}],
            "blend": "add",
            "text_weight": 0.0,
            "identity_guidance": 0.0,
            "span.start": 0.0,
        },
        "DP-Adapter": {},
    }
)

PROMPTS = (
    "color photo of a person, red clothes, striped blue background",
    "close-up color photo of a smiling person, green clothes, yellow background",
    "color photo of a person on the left, purple clothes, checkered grey background",
    "black and white photo of a person, dotted background",
)

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class PersonPhoto:
    """The photo of one of the people.

    Attributes:
        file: of the photo in ``portraits``; None for scikit-image's astronaut.
    """

    name: str
    file: str | None


PEOPLE = (PersonPhoto("astronaut", None), PersonPhoto("M000312", "M000312.jpg"), PersonPhoto("J000032", "J000032.jpg"))
IN_THE_GRID = 2


@dataclass(frozen=True)
class EditExample:
    """An edit mode to show.

    Attributes:
        person: number in the people.
        pictures: what is asked for, by caption; the first picture is the one before the edit.
        old: whether the photo is first made to look old.
    """

    title: str
    does: str
    person: int
    prompt: str
    pictures: Mapping[str, Fields]
    old: bool = False


_BODY: Fields = {"mode": "full_body"}
EDITS = (
    EditExample(
        "Headshot to full body",
        "The face follows the photo once the figure stands; the face pass then makes the small face anew, enlarged.",
        1,
        "color photo of a person, green clothes, yellow background",
        {
            "before": {},
            "full body": {**_BODY, "face_pass.use": "off"},
            "with the face pass": _BODY,
        },
    ),
    EditExample(
        "Age",
        "Skin, brows and hair follow the words for the target age, the rest of the face the photo.",
        2,
        "close-up color photo of a person, pink clothes, blue background",
        {"before": {}, "70 years old": {"mode": "age", "reference_age": 45, "target_age": 70}},
    ),
    EditExample(
        "Old photo to reality",
        "The photo, made to look old by a machine, is neutralised and cleaned; the picture is asked for in colour.",
        0,
        "photo of a person, orange clothes, green background",
        {"before": {}, "old photo": {"mode": "old_photo"}},
        old=True,
    ),
    EditExample(
        "Expression",
        "Mouth, eyes and brows follow the words, the rest of the face the photo.",
        1,
        "close-up color photo of a person, blue clothes, white background",
        {
            "before": {},
            "serious": {"mode": "expression", "expression": "serious"},
            "smiling": {"mode": "expression", "expression": "smiling"},
        },
    ),
)


@dataclass(frozen=True)
class Shot:
    """One picture to make. Two shots that ask for the same are equal, whatever they are called."""

    prompt: str
    settings: Settings
    seed: int
    title: str = field(default="", compare=False)


@dataclass(frozen=True)
class Programme:
    """All that is shown.

    Attributes:
        grid: how many of the people are in the arms' grid; ``steps`` of the sampler for each picture.
        sections: those of ``SECTIONS`` that are wanted.
    """

    seed: int = SEED
    steps: int = STEPS
    people: tuple[PersonPhoto, ...] = PEOPLE
    prompts: tuple[str, ...] = PROMPTS
    edits: tuple[EditExample, ...] = EDITS
    weights: tuple[float, ...] = WEIGHTS
    grid: int = IN_THE_GRID
    sections: tuple[str, ...] = SECTIONS


def request_for(adapter: Path, photo: Path) -> Settings:
    """The request that all shots of a person start from."""
    return Settings(model=str(adapter), weight=WEIGHT, references=(Reference(image=str(photo)),))


def shots_of_arms(common: Settings, prompt: str, seed: int) -> dict[str, Shot]:
    """A shot for each arm. The base model's asks for nobody, so it is one and the same for all people."""
    shots: dict[str, Shot] = {}
    for name, fields in ARMS.items():
        request = common.with_fields(fields)
        request = request if request.enabled else Settings(enabled=False)
        shots[name] = Shot(prompt, request, seed, name)
    return shots


def shots_of_edit(common: Settings, edit: EditExample, seed: int) -> dict[str, Shot]:
    """A shot for each picture of an edit."""
    return {
        caption: Shot(edit.prompt, common.with_fields(fields), seed, f"{edit.title}: {caption}")
        for caption, fields in edit.pictures.items()
    }


def shots_of_sweep(common: Settings, prompt: str, weights: Sequence[float], seed: int) -> dict[float, Shot]:
    """A shot for each weight; 0 is the base model's picture."""
    made = {w: common.replace(weight=w) if w else Settings(enabled=False) for w in weights}
    return {weight: Shot(prompt, request, seed, f"weight {weight:g}") for weight, request in made.items()}
