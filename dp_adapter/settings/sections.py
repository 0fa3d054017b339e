"""The small records of the request: a photo, a face choice, spans, factors, regions and the like."""

# ruff: noqa: RUF009 - setting() returns a dataclass field, nothing that instances share

from __future__ import annotations

from dataclasses import dataclass

from dp_adapter.settings.container_types import ListOf, Nullable, SiteFactors
from dp_adapter.settings.field_types import Choice, Integer, Number, Picture, Text
from dp_adapter.settings.fields import Record, fields_of, setting
from dp_adapter.settings.messages import refusal, tidy, within
from dp_adapter.settings.nested_records import RecordOf

MAX_IDENTITIES = 8
MAX_SITES = 70  # text cross-attention layers of SDXL; SD1.5 has 16
FRACTION = Number(0.0, 1.0, 0.01)
WEIGHT = Number(0.0, 2.0, 0.05)
PERSON = Integer(0, MAX_IDENTITIES - 1, noun="person")


@dataclass(frozen=True)
class FaceChoice(Record):
    """Which face of a photo with several is meant."""

    choice: str = setting(
        "largest",
        Choice(("largest", "centre", "left", "right", "index", "like")),
        "Face choice",
        "Which face to take when a photo shows several; 'index' counts from the left, "
        "'like' takes the face most like another photo's.",
    )
    index: int = setting(
        0, Integer(0, 999, noun="face"), "Face index", "With face choice 'index': which face, counted from the left."
    )
    like: str = setting(
        "", Picture(), "Face like", "With face choice 'like': a photo or a saved identity of the person to look for."
    )
    min_size: int = setting(
        0, Integer(0, 4096), "Face minimum size", "Faces lower than this many pixels in the photo are passed over."
    )

    def _check_together(self) -> None:
        if self.choice == "like" and not self.like:
            with within("like"):
                raise refusal("is empty, and the face choice 'like' needs it", "Give a photo or identity:NAME.")


@dataclass(frozen=True)
class Reference(Record):
    """One photo of a person."""

    image: str = setting(
        "",
        Picture(min_length=1, latent=True),
        "Photo",
        "The photo: a path, a data URL, base64, photo:HASH for a dropped one, or identity:NAME for a saved identity.",
        also=("photo", "picture", "file", "path", "url", "input_image"),
    )
    weight: float = setting(
        1.0, WEIGHT, "Photo weight", "Share of this photo in the person's identity.", also=("strength", "scale")
    )
    identity: int = setting(0, PERSON, "Photo person", "Which person this photo shows.", also=("person",))
    words: str = setting(
        "",
        Text(100),
        "Photo words",
        "Words of the prompt that mean this person, such as 'woman in red'; empty: woman, man, person and the like, in "
        "the prompt's order.",
    )
    face: FaceChoice | None = setting(
        None,
        Nullable(RecordOf(FaceChoice, prefix="Photo")),
        "Photo face",
        "Face choice of this photo alone; null takes the common one.",
    )


@dataclass(frozen=True)
class Span(Record):
    """Part of the generation, as progress from 0 (noise) to 1 (picture)."""

    start: float | None = setting(
        None,
        Nullable(FRACTION),
        "Start",
        "Progress at which the identity starts to act; null: 0 when a region is known from the start, else 0.15, "
        "or what the mode says.",
        also=("start", "begin", "guidance_start", "starting_control_step"),
    )
    end: float = setting(
        1.0,
        FRACTION,
        "End",
        "Progress at which the identity stops acting.",
        also=("end", "stop", "guidance_end", "ending_control_step"),
    )

    def _check_together(self) -> None:
        if self.start is not None and self.start > self.end:
            with within("start"):
                raise refusal(
                    f"{tidy(self.start)} is after the end {tidy(self.end)}", f"Use {tidy(self.end)} or less.", self.end
                )


@dataclass(frozen=True)
class Levels(Record):
    """Factors on the identity weight by depth in the UNet."""

    down: float = setting(1.0, WEIGHT, "Weight in down blocks", "Factor on the weight in the UNet's down blocks.")
    middle: float = setting(1.0, WEIGHT, "Weight in middle block", "Factor on the weight in the UNet's middle block.")
    up: float = setting(1.0, WEIGHT, "Weight in up blocks", "Factor on the weight in the UNet's up blocks.")
    sites: tuple[tuple[int, float], ...] = setting(
        (),
        SiteFactors(MAX_SITES, WEIGHT),
        "Weight per site",
        "Further factors by single attention site, numbered as in adapter files: down, up, then middle.",
    )


_POWER = Number(0.1, 8.0, 0.05)
_POWER_HELP = (
    "Power on the region mask in the {}: above 1 draws the identity to the middle of the face, below 1 widens it."
)


@dataclass(frozen=True)
class Gate(Record):
    """Powers of the training-free gate G = M^p (method.md); trained gates do not read them."""

    down: float = setting(1.0, _POWER, "Gate power in down blocks", _POWER_HELP.format("down blocks"))
    middle: float = setting(2.0, _POWER, "Gate power in middle block", _POWER_HELP.format("middle block"))
    up: float = setting(0.75, _POWER, "Gate power in up blocks", _POWER_HELP.format("up blocks"))


@dataclass(frozen=True)
class Box(Record):
    """A rectangle in fractions of the picture's width and height; the default is the whole picture."""

    x0: float = setting(0.0, FRACTION, "Box left", "Left edge of the region's box, as a fraction of the width.")
    y0: float = setting(0.0, FRACTION, "Box top", "Upper edge of the region's box, as a fraction of the height.")
    x1: float = setting(1.0, FRACTION, "Box right", "Right edge of the region's box, as a fraction of the width.")
    y1: float = setting(1.0, FRACTION, "Box bottom", "Lower edge of the region's box, as a fraction of the height.")

    def _check_together(self) -> None:
        for low_name, high_name in (("x0", "x1"), ("y0", "y1")):
            low, high = getattr(self, low_name), getattr(self, high_name)
            if low >= 1.0:
                with within(low_name):
                    raise refusal("1 leaves the box no area", "Use 0.999 or less.", 0.999)
            if high <= low:
                with within(high_name):
                    raise refusal(
                        f"{tidy(high)} is not above {low_name} = {tidy(low)}, so the box has no area",
                        f"Use more than {tidy(low)}.",
                        min(1.0, low + 0.001),
                    )


# One unit for all regions and sizes of picture, so that the hires pass and a larger face look the same.
_GROW_HELP = "Widening of {}, as a fraction of its size (the square root of its area){}."
_FEATHER_HELP = "Softness of the edge of {}: standard deviation as a fraction of its size{}."
_AS_DRAWN = "; null: the automatic value for an automatic region, 0 for others"


@dataclass(frozen=True)
class Region(Record):
    """Where one person's identity acts."""

    kind: str = setting(
        "auto",
        Choice(("auto", "full", "box", "mask")),
        "Region kind",
        "auto follows the face of the picture being made, full is the whole picture, box and mask are drawn.",
        also=("shape", "type"),
    )
    box: Box | None = setting(None, Nullable(RecordOf(Box)), "Region box", "With region kind 'box': the rectangle.")
    mask: str = setting(
        "", Picture(saved=False), "Region mask", "With region kind 'mask': a picture, white where the identity acts."
    )
    op: str = setting(
        "add",
        Choice(("add", "subtract")),
        "Region combine",
        "add: the identity acts here too; subtract: it does not, whatever the person's other regions say.",
    )
    identity: int = setting(0, PERSON, "Region person", "Which person acts here.", also=("person",))
    weight: float = setting(
        1.0,
        WEIGHT,
        "Region weight",
        "Factor on the identity weight in this region; of a subtracted one: how far it is taken away.",
    )
    grow: float | None = setting(None, Nullable(FRACTION), "Region grow", _GROW_HELP.format("this region", _AS_DRAWN))
    feather: float | None = setting(
        None, Nullable(FRACTION), "Region feather", _FEATHER_HELP.format("this region", _AS_DRAWN)
    )

    def _check_together(self) -> None:
        if self.kind == "box" and self.box is None:
            with within("box"):
                raise refusal("is missing, and the region kind 'box' needs it", "Give x0, y0, x1 and y1.")
        if self.kind == "mask" and not self.mask:
            with within("mask"):
                raise refusal("is empty, and the region kind 'mask' needs it", "Give a picture of the mask.")


@dataclass(frozen=True)
class Tracking(Record):
    """How automatic regions are found while the picture forms (method.md, "Regions over time")."""

    sources: tuple[str, ...] = setting(
        ("init", "preview", "attention"),
        ListOf(Choice(("init", "preview", "attention")), 3, "source", unique=True),
        "Region sources",
        "Where the face is looked for: the init picture before the first step, then previews of the forming picture "
        "and attention maps, of which the one named first decides where both have an answer.",
    )
    moments: tuple[float, ...] = setting(
        (0.15, 0.3, 0.55),
        ListOf(FRACTION, 16, "moment"),
        "Preview moments",
        "Progress at which the preview is searched for the face, in rising order.",
    )
    decoder: str = setting(
        "auto",
        Choice(("auto", "taesd", "approx", "full")),
        "Preview decoder",
        "What turns latents into a preview: taesd and approx are cheap, full is the model's own; auto takes the best "
        "cheap one that is here.",
    )
    words: str = setting(
        "",
        Text(200),
        "Person words",
        "Words of the prompt whose attention shows where a person is, with commas between; empty: man, woman, person "
        "and the like.",
    )
    fallback: str = setting(
        "late",
        Choice(("late", "none", "full")),
        "Until a region is found",
        "Where the identity acts before any source has an answer: late is nowhere until the last look and the full "
        "picture from then on, none is nowhere, full is the full picture.",
    )
    grow: float = setting(0.1, FRACTION, "Automatic region grow", _GROW_HELP.format("an automatic region", ""))
    feather: float = setting(
        0.05, FRACTION, "Automatic region feather", _FEATHER_HELP.format("an automatic region", "")
    )

    def _check_together(self) -> None:
        for index, (before, after) in enumerate(zip(self.moments, self.moments[1:], strict=False), start=1):
            if after <= before:
                with within(f"moments[{index}]"):
                    nearest = tuple(sorted(set(self.moments)))
                    listed = ", ".join(tidy(moment) for moment in nearest)
                    raise refusal(f"{tidy(after)} does not come after {tidy(before)}", f"Use {listed}.", nearest)


def _part(label: str, what: str, automatic: float) -> float | None:
    return setting(
        None,
        Nullable(FRACTION),
        f"{label} weight",
        f"How far {what} the photo (1) or the text (0); null: {tidy(automatic)}, or what the mode says.",
        automatic=automatic,
    )


@dataclass(frozen=True)
class Parts(Record):
    """Which parts of the head follow the photo; null leaves a part to the mode."""

    face: float | None = _part("Face", "all parts of the face (skin to mouth, a factor on each) follow", 1.0)
    skin: float | None = _part("Skin", "the skin of the face follows", 1.0)
    brows: float | None = _part("Brows", "the brows follow", 1.0)
    eyes: float | None = _part("Eyes", "the eyes follow", 1.0)
    glasses: float | None = _part("Glasses", "glasses follow", 1.0)
    nose: float | None = _part("Nose", "the nose follows", 1.0)
    mouth: float | None = _part("Mouth", "the mouth follows", 1.0)
    ears: float | None = _part("Ears", "the ears follow", 1.0)
    hair: float | None = _part("Hair", "the hair follows", 0.0)
    neck: float | None = _part("Neck", "the neck follows", 0.0)
    clothes: float | None = _part("Clothes", "the clothes follow", 0.0)
    background: float | None = _part("Background", "the background follows", 0.0)

    def weights(self, mode: dict[str, float] | None = None) -> dict[str, float]:
        """Every part's weight: the user's, else the mode's, else the part's automatic one."""
        declared = {info.name: info.automatic for info in fields_of(Parts) if info.automatic is not None}
        automatic = declared | (mode or {})
        chosen: dict[str, float | None] = {name: getattr(self, name) for name in automatic}
        return {name: automatic[name] if value is None else value for name, value in chosen.items()}


@dataclass(frozen=True)
class Hires(Record):
    """What the hires pass does differently."""

    use: str = setting(
        "same",
        Choice(("same", "own", "off")),
        "Hires pass",
        "same: as the first pass; own: the weight and span given here; off: no identity in the hires pass.",
    )
    weight: float = setting(0.8, WEIGHT, "Hires weight", "With hires pass 'own': the weight in the hires pass.")
    span: Span = setting(
        Span(), RecordOf(Span, prefix="Hires"), "Hires span", "With hires pass 'own': when the identity acts in it."
    )


@dataclass(frozen=True)
class Performance(Record):
    """Speed against memory; no setting here changes the picture beyond rounding."""

    form: str = setting(
        "auto",
        Choice(("auto", "folded", "half", "plain")),
        "Attention form",
        "folded computes identity attention with weights folded once, half folds only the values, plain nothing; auto "
        "takes the fastest of them that the model allows and the memory holds.",
    )
    memory_mb: int = setting(
        1024,
        Integer(16, 65536, step=16),
        "Folding memory",
        "Most memory in MB that folded weights may take; beyond it auto takes the next form.",
    )
