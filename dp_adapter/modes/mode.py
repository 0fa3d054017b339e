"""What a mode is, as it is written down (a user's own JSON file has these very fields) and as it acts on a request."""

# ruff: noqa: RUF009 - setting() returns a dataclass field, nothing that instances share

from __future__ import annotations

from dataclasses import dataclass

from dp_adapter.settings import Choice, Flag, Integer, ListOf, Nullable, Number, Parts, Record, RecordOf, Settings, Text
from dp_adapter.settings.fields import setting
from dp_adapter.settings.messages import refusal, tidy, within
from dp_adapter.settings.sections import FRACTION, WEIGHT

NEEDS = ("target_age", "reference_age", "expression")
_AGE = Integer(0, 120)
_POWER = Number(0.1, 8.0, 0.05)


@dataclass(frozen=True)
class ModeWords(Record):
    """Words for the prompt in some stages of the generation (ProSpect).

    ``{target_age}``, ``{reference_age}`` and ``{expression}`` stand for the request's; ``{against}`` for what speaks
    against a named expression. Words of which nothing is left are left out.
    """

    text: str = setting("", Text(300, min_length=1), "Text", "One phrase or several with commas between.")
    negative: bool = setting(False, Flag(), "Negative", "Whether they go into the negative prompt.")
    start: float = setting(0.0, FRACTION, "Words start", "Progress from which they are in the prompt.")
    end: float = setting(1.0, FRACTION, "Words end", "Progress up to which they are in it.")
    min_age: int | None = setting(None, Nullable(_AGE), "Least age", "Only for this target age and above.")
    max_age: int | None = setting(None, Nullable(_AGE), "Greatest age", "Only for this target age and below.")

    def _check_together(self) -> None:
        if self.start >= self.end:
            with within("start"):
                raise refusal(f"{tidy(self.start)} is not before the end {tidy(self.end)}", "Lower it.", 0.0)

    @property
    def of_age(self) -> bool:
        """Whether they are meant for some target ages only."""
        return self.min_age is not None or self.max_age is not None

    def fits(self, age: int | None) -> bool:
        """Whether they are meant for this target age."""
        if not self.of_age:
            return True
        return age is not None and (self.min_age or 0) <= age <= (120 if self.max_age is None else self.max_age)


@dataclass(frozen=True)
class Mode(Record):
    """What is set where the user left a field automatic, what is done to the photo, and words."""

    title: str = setting("", Text(80), "Title", "The mode's name in words.")
    does: str = setting("", Text(300), "Does", "What it does, in one sentence.")
    weight: float = setting(1.0, WEIGHT, "Weight factor", "Factor on the weight that the request gives.")
    start: float | None = setting(None, Nullable(FRACTION), "Mode start", "Progress at which the identity starts.")
    structure: float | None = setting(None, Nullable(WEIGHT), "Mode structure", "Share of the photo's CLIP structure.")
    gate: float | None = setting(
        None, Nullable(_POWER), "Gate power", "Power on the region at all depths, unless the request changes one."
    )
    parts: Parts = setting(Parts(), RecordOf(Parts), "Parts", "Weights of parts; null leaves one as it is.")
    far_parts: Parts | None = setting(
        None,
        Nullable(RecordOf(Parts)),
        "Far parts",
        "The same where target and photo are 40 years or more apart; in between they go evenly.",
    )
    words: tuple[ModeWords, ...] = setting(
        (), ListOf(RecordOf(ModeWords), 64, "entry"), "Words", "Words for the prompts."
    )
    needs: tuple[str, ...] = setting(
        (), ListOf(Choice(NEEDS), 3, "field", unique=True), "Needs", "Fields of the request that are asked for."
    )
    target_age: int = setting(60, _AGE, "Mode target age", "Taken where it is asked for and the request gives none.")
    expression: str = setting(
        "smiling", Text(500, min_length=1), "Mode expression", "Taken where it is asked for and the request gives none."
    )
    retouch: bool = setting(False, Flag(), "Retouch", "Whether old reference photos are retouched.")
    restore: bool = setting(
        False, Flag(), "Restore", "Whether the face in the photo is restored, if a restorer is here."
    )
    face_pass: bool = setting(False, Flag(), "Mode face pass", "Whether finished faces are made anew, enlarged.")
    free_parts: bool = setting(False, Flag(), "Mode free parts", "Whether parts left to the text are set free.")
    notes: tuple[str, ...] = setting((), ListOf(Text(300), 8, "note"), "Notes", "What the user should know.")

    @property
    def reads(self) -> frozenset[str]:
        """Which of ``NEEDS`` have a say in what it does, asked for or not."""
        texts = " ".join(one.text for one in self.words)
        of_age = self.far_parts is not None or any(one.of_age for one in self.words)
        ways = {
            "target_age": of_age or "{target_age}" in texts,
            "reference_age": self.far_parts is not None or "{reference_age}" in texts,
            "expression": "{expression}" in texts or "{against}" in texts,
        }
        return frozenset({*self.needs, *(name for name, read in ways.items() if read)})


@dataclass(frozen=True)
class ResolvedMode:
    """A mode at work.

    Attributes:
        settings: the request with what the mode sets; what the user set stands.
        words: for the prompts; none where the user wants none.
        lines: what the mode does here, in sentences.
        notes: what was taken for the user, or cannot be done here.
        face_pass: whether the mode wants finished faces made anew, where the request leaves that to it.
    """

    mode: Mode
    settings: Settings
    words: tuple[ModeWords, ...] = ()
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    face_pass: bool = False
