"""The records of the request about single pathways and families: the text side, references, IdentityNet, W+."""

from __future__ import annotations

from dataclasses import dataclass

from dp_adapter.settings.field_types import Choice, Number, Text
from dp_adapter.settings.fields import Record, setting
from dp_adapter.settings.messages import refusal, tidy, within
from dp_adapter.settings.sections import FRACTION, WEIGHT


@dataclass(frozen=True)
class TextSide(Record):
    """How an identity acts on the text side: through a word of the prompt."""

    lock: str = setting(
        "auto",
        Choice(("auto", "none", "key", "others")),
        "Word lock",
        "Where an identity acts through a word: key keeps the word's own keys (Perfusion), others keeps every other "
        "word as it was (AlignIT), none changes all; auto takes what the model was trained with.",
    )
    weight: float = setting(1.0, WEIGHT, "Word weight", "Strength of an identity that acts through a word.")
    personal: str = setting(
        "",
        Text(1024),
        "Personal file",
        "Name of a personalised identity (ID-EA) that acts through the words beside the model, or instead of one.",
    )


@dataclass(frozen=True)
class ReferenceAttention(Record):
    """Self-attention to the photo itself, in the person's region (FreeCustom, BootPIG)."""

    weight: float = setting(
        0.0,
        FRACTION,
        "Photo attention",
        "How far the picture's self-attention also looks at the photo, for one more row of computing; 0 is off.",
    )
    start: float = setting(0.0, FRACTION, "Photo attention start", "Progress at which it starts.")
    end: float = setting(1.0, FRACTION, "Photo attention end", "Progress at which it stops.")

    def _check_together(self) -> None:
        if self.start > self.end:
            with within("start"):
                raise refusal(
                    f"{tidy(self.start)} is after the end {tidy(self.end)}", f"Use {tidy(self.end)} or less.", self.end
                )


@dataclass(frozen=True)
class IdentityNet(Record):
    """InstantID's ControlNet, through the host's own."""

    use: str = setting(
        "auto",
        Choice(("auto", "on", "off")),
        "IdentityNet",
        "With InstantID: guide the face's place and pose by the host's ControlNet; auto: where ControlNet and the "
        "model are installed.",
    )
    model: str = setting(
        "", Text(1024), "IdentityNet model", "Name of the IdentityNet among ControlNet's models; empty finds it."
    )
    weight: float = setting(0.8, WEIGHT, "IdentityNet weight", "Strength of IdentityNet.")
    end: float = setting(1.0, FRACTION, "IdentityNet end", "Progress at which IdentityNet stops acting.")


@dataclass(frozen=True)
class WPlus(Record):
    """Moves of a W+ adapter's latent along directions of StyleGAN's space."""

    age: float = setting(
        0.0, Number(-10.0, 10.0, 0.1), "StyleGAN age", "With a W+ adapter: older above 0, younger below."
    )
    direction: str = setting(
        "",
        Text(200),
        "StyleGAN direction",
        "With a W+ adapter: name of a further direction file, such as emotion_happy.",
    )
    amount: float = setting(
        0.0, Number(-10.0, 10.0, 0.1), "StyleGAN amount", "With a W+ adapter: how far to go along that direction."
    )


@dataclass(frozen=True)
class Companion(Record):
    """A file that fits the base model to other sizes of pictures (ResAdapter)."""

    model: str = setting(
        "",
        Text(1024),
        "Size companion",
        "Name of a ResAdapter, for pictures far from the model's own size; empty: none.",
    )
    weight: float = setting(1.0, WEIGHT, "Size companion weight", "Strength of the ResAdapter.")
