"""Makes what the demo shows, section by section: the shots that are needed, and measures of their pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from dp_adapter.demo import shots
from dp_adapter.demo.drawing import Values
from dp_adapter.demo.make_pictures import FinishedShot
from dp_adapter.demo.people import DemoPerson, age_photo, examine_photo
from dp_adapter.demo.shots import EditExample, Programme, Shot
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.modes import mode_parameters
from dp_adapter.session import Session
from dp_adapter.session.results.best_of import Drift, measure_drift
from dp_adapter.session.results.judge import Judge

Shoot = Callable[[Sequence[Shot]], Mapping[Shot, FinishedShot]]
Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class CaptionedPicture:
    """One picture with what stands beside it.

    Attributes:
        likeness: cosine to the photo of the face that is most like it, by SFace; None where no face is found.
        words, against: what a mode has added to the prompt and the negative prompt.
        lines: what was done, in sentences.
        region: [h, w] in 0..1, where the identity acted; None: all over, or nowhere in the base model's picture.
        face_pass: how many faces were made anew, in words; empty where none should be.
    """

    picture: Picture
    likeness: float | None
    words: str
    against: str
    lines: tuple[str, ...]
    region: Values | None
    face_pass: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """The arms for one prompt and person.

    Attributes:
        heat: by arm, mean absolute difference to the base model's picture over the colours, [h, w] in 0..255.
        drift: the same inside and outside the region of the DP-Adapter arm, as mean squares of colours in 0..1.
    """

    prompt: str
    person: DemoPerson
    frames: Mapping[str, CaptionedPicture]
    heat: Mapping[str, Values]
    drift: Mapping[str, Drift]

    @property
    def region(self) -> Values | None:
        """That of the DP-Adapter arm."""
        return self.frames["DP-Adapter"].region


@dataclass(frozen=True, eq=False)
class Strip:
    """Pictures beside each other: an edit before and after, or one prompt at rising weights."""

    title: str
    does: str
    prompt: str
    reference: Picture
    frames: Mapping[str, CaptionedPicture]


@dataclass(frozen=True, eq=False)
class Story:
    """All that is shown, with its measurements."""

    programme: Programme
    people: tuple[DemoPerson, ...]
    comparisons: tuple[Comparison, ...]
    edits: tuple[Strip, ...]
    sweep: Strip | None

    def by_prompt(self) -> dict[str, list[Comparison]]:
        """The comparisons of each prompt, a person each."""
        return {
            prompt: [one for one in self.comparisons if one.prompt == prompt]
            for prompt in dict.fromkeys(one.prompt for one in self.comparisons)
        }

    def means(self) -> dict[str, tuple[float, float | None]]:
        """By arm: mean likeness (0 where no face is found), and mean drift outside, None where nothing is outside."""
        found: dict[str, tuple[float, float | None]] = {}
        for arm in self.comparisons[0].frames if self.comparisons else ():
            alike = [one.frames[arm].likeness or 0.0 for one in self.comparisons]
            moved = [o for one in self.comparisons if (o := one.drift[arm].outside) is not None]
            found[arm] = float(np.mean(alike)), float(np.mean(moved)) if moved else None
        return found


def make_story(
    session: Session, programme: Programme, people: Sequence[DemoPerson], adapter: Path, folder: Path, shoot: Shoot
) -> Story:
    """Makes all pictures and measures them.

    Args:
        folder: for photos made to look old.
        shoot: makes each shot once.

    Raises:
        DPAdapterError: a picture cannot be made.
    """
    wanted, seed = programme.sections, programme.seed
    requests = [shots.request_for(adapter, person.photo) for person in people]
    arms = [
        (prompt, number, shots.shots_of_arms(requests[number], prompt, seed))
        for prompt in (programme.prompts if "arms" in wanted else ())
        for number in range(programme.grid)
    ]
    edits: list[tuple[EditExample, DemoPerson, dict[str, Shot]]] = []
    for edit in programme.edits if "modes" in wanted else ():
        person = people[edit.person]
        if edit.old:
            person = examine_photo(session, f"{person.name}-old", age_photo(person.picture, person.face), folder)
        edits.append((edit, person, shots.shots_of_edit(shots.request_for(adapter, person.photo), edit, seed)))
    sweep = shots.shots_of_sweep(
        requests[0], programme.prompts[0], programme.weights if "sweep" in wanted else (), seed
    )
    every = [*(s for *_, some in arms for s in some.values()), *(s for *_, some in edits for s in some.values())]
    made = shoot([*every, *sweep.values()])

    judges = [Judge(session, one) for one in requests]
    strip = Strip(
        "The weight", "", programme.prompts[0], people[0].shown,
        {f"{weight:g}": _caption(made[shot], judges[0]) for weight, shot in sweep.items()},
    )  # fmt: skip
    return Story(
        programme,
        tuple(people),
        tuple(_compare(prompt, people[n], _caption_all(made, some, judges[n])) for prompt, n, some in arms),
        tuple(
            Strip(edit.title, edit.does, edit.prompt, person.shown, _caption_all(made, some, judges[edit.person]))
            for edit, person, some in edits
        ),
        strip if sweep else None,
    )


def _caption_all(
    made: Mapping[Shot, FinishedShot], some: Mapping[Key, Shot], judge: Judge
) -> dict[Key, CaptionedPicture]:
    return {caption: _caption(made[shot], judge) for caption, shot in some.items()}


def _caption(made: FinishedShot, judge: Judge) -> CaptionedPicture:
    explanation, result = made.generation.explanation, made.result
    added = mode_parameters(explanation.words)
    return CaptionedPicture(
        result.picture,
        judge.see(result.picture).likeness.get(0),
        added.get("DP-Adapter result words", ""),
        added.get("DP-Adapter result negative words", ""),
        tuple(explanation.lines()),
        result.regions.get(0),
        result.facts.get("face pass", ""),
    )


def _compare(prompt: str, person: DemoPerson, frames: Mapping[str, CaptionedPicture]) -> Comparison:
    base, region = frames["base model"].picture, frames["DP-Adapter"].region
    pictures = {arm: frame.picture for arm, frame in frames.items()}
    return Comparison(
        prompt,
        person,
        frames,
        {arm: np.abs(one.astype(np.float32) - base).mean(-1) for arm, one in pictures.items()},
        {arm: measure_drift(one, base, region) for arm, one in pictures.items()},
    )
