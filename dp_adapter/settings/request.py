"""Settings: everything the panel, the API, infotext, X/Y/Z and the CLI can ask for, in one object."""

# ruff: noqa: RUF009 - setting() returns a dataclass field, nothing that instances share

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from dp_adapter import naming
from dp_adapter.errors import SettingsError
from dp_adapter.settings.container_types import ListOf, Nullable
from dp_adapter.settings.curve import Curve, CurveText
from dp_adapter.settings.field_paths import set_at, to_json
from dp_adapter.settings.field_types import Choice, Flag, Integer, Text
from dp_adapter.settings.fields import Record, fields_of, setting
from dp_adapter.settings.messages import count, refusal, show, within
from dp_adapter.settings.nested_records import RecordOf, decode, encode, unknown_key_error
from dp_adapter.settings.pathway_sections import Companion, IdentityNet, ReferenceAttention, TextSide, WPlus
from dp_adapter.settings.result_sections import FacePass, Report
from dp_adapter.settings.sections import (
    WEIGHT,
    FaceChoice,
    Gate,
    Hires,
    Levels,
    Parts,
    Performance,
    Reference,
    Region,
    Span,
    Tracking,
)

VERSION = 1
VARIANTS = (  # docs/formats.md, "What the keys cannot tell"
    "auto",
    "plus",
    "plus-face",
    "composition",
    "faceid-plus",
    "faceid-plusv2",
    "instantid",
    "faceid-portrait-unnorm",
)


@dataclass(frozen=True)
class Settings(Record):
    """One request, complete and valid: construction checks every field and their agreement.

    Raises:
        SettingsError: names the dotted field, the value, and the nearest valid value.
    """

    enabled: bool = setting(True, Flag(), "Enabled", "Whether the adapter acts at all.")
    references: tuple[Reference, ...] = setting(
        (),
        ListOf(RecordOf(Reference), 32, "photo"),
        "Photos",
        "Photos of the person or persons, at most 32 of at most 8 persons.",
        also=("photos", "photo", "images", "pictures", "reference", "reference_images", "faces"),
    )
    combine: str = setting(
        "auto",
        Choice(("auto", "concatenate", "average", "normalised_average", "weighted", "best")),
        "Combine photos",
        "How several photos of one person become one identity; auto does as the model was trained.",
    )
    face: FaceChoice = setting(FaceChoice(), RecordOf(FaceChoice), "Face", "Which face of a photo with several.")
    no_face: str = setting(
        "stop",
        Choice(("stop", "continue")),
        "If no face is found",
        "stop ends the job with a message, continue goes on without this photo.",
    )
    model: str = setting(
        "",
        Text(1024),
        "Model",
        "Name or path of the adapter's checkpoint; empty takes the only one.",
        also=("checkpoint", "adapter", "ip_adapter", "file"),
    )
    variant: str = setting(
        "auto",
        Choice(VARIANTS),
        "Model variant",
        "What a checkpoint's own keys cannot tell; needed only for the files that are asked about.",
    )
    weight: float = setting(
        0.8,
        WEIGHT,
        "Weight",
        "Strength of the identity pathway.",
        also=("strength", "scale", "control_weight", "ip_scale", "identity_weight"),
    )
    text_weight: float = setting(
        1.0, WEIGHT, "Text pathway weight", "Strength of the text pathway's trained weights, where the model has any."
    )
    text_emphasis: float = setting(
        0.0, WEIGHT, "Text emphasis", "Strengthens the prompt outside the face; 0 leaves it as it is."
    )
    strict_text_region: bool = setting(
        False,
        Flag(),
        "Strict text region",
        "Keeps everything outside the face as it would be without the adapter, for one more row of computing.",
    )
    identity_guidance: float | None = setting(
        None,
        Nullable(WEIGHT),
        "Identity guidance",
        "Guides the person apart from the prompt, with this part of the CFG scale, and leaves the rest of the picture "
        "to the prompt, for one more row of computing; 0: not apart; null: as the model says (public ones: not apart). "
        "Try 0.7 with a weight of 1.5.",
    )
    blend: str = setting(
        "auto",
        Choice(("auto", "add", "orthogonal", "orthogonal_v2", "norm", "adain_mean", "gated")),
        "Blend mode",
        "How the identity joins the text's result; auto takes what the model was trained with.",
    )
    structure: float | None = setting(
        None,
        Nullable(WEIGHT),
        "Structure weight",
        "Share of the photo's CLIP structure in FaceID-Plus models; null: 1, or what the mode says.",
        automatic=1.0,
    )
    lora_weight: float = setting(1.0, WEIGHT, "LoRA weight", "Strength of the LoRA inside the model's file.")
    pulid_method: str = setting(
        "auto",
        Choice(("auto", "fidelity", "style", "neutral")),
        "PuLID method",
        "With PuLID models and an automatic blend mode: fidelity keeps the face, style keeps the prompt's style, "
        "neutral is plain addition; auto is fidelity.",
    )
    sharing: str = setting(
        "auto",
        Choice(("auto", "regions", "words")),
        "Several persons",
        "How several persons share the picture: regions gives each one their own, words divides by the attention of "
        "their words without regions (MIP-Adapter); auto is words for MIP-Adapter and regions for all others.",
    )
    text_side: TextSide = setting(TextSide(), RecordOf(TextSide), "Text side", "Identities that act through a word.")
    reference_attention: ReferenceAttention = setting(
        ReferenceAttention(),
        RecordOf(ReferenceAttention),
        "Reference attention",
        "Self-attention to the photo itself.",
    )
    identity_net: IdentityNet = setting(
        IdentityNet(), RecordOf(IdentityNet), "IdentityNet settings", "InstantID's ControlNet."
    )
    w_plus: WPlus = setting(WPlus(), RecordOf(WPlus), "StyleGAN", "Moves in StyleGAN's latent space.")
    companion: Companion = setting(Companion(), RecordOf(Companion), "Companion", "A file beside the model.")
    span: Span = setting(Span(), RecordOf(Span), "Span", "When the identity acts.")
    curve: Curve = setting(
        Curve(),
        CurveText(),
        "Weight curve",
        "Factor on the weight over progress: weight@progress points, linear in between, constant outside; empty is 1.",
    )
    levels: Levels = setting(Levels(), RecordOf(Levels), "Levels", "Factors on the weight by depth in the UNet.")
    gate: Gate = setting(Gate(), RecordOf(Gate), "Gate", "How sharply each depth of the UNet follows the region.")
    regions: tuple[Region, ...] = setting(
        (),
        ListOf(RecordOf(Region), 32, "region"),
        "Regions",
        "Where each person acts; a person without a region gets an automatic one.",
    )
    tracking: Tracking = setting(Tracking(), RecordOf(Tracking), "Tracking", "How automatic regions are found.")
    parts: Parts = setting(Parts(), RecordOf(Parts), "Parts", "Which parts of the head follow the photo.")
    mode: str = setting(
        "portrait",
        Choice(("portrait", "full_body", "age", "old_photo", "expression", "inpaint"), own="custom"),
        "Mode",
        "What the picture is to be; a mode sets what is left automatic. custom:NAME is a mode file of your own.",
        also=("edit", "edits", "edit_mode", "editing", "task"),
    )
    target_age: int | None = setting(
        None,
        Nullable(Integer(0, 120)),
        "Target age",
        "With mode 'age': age in the picture, in years; null: 60.",
        also=("age",),
    )
    reference_age: int | None = setting(
        None,
        Nullable(Integer(0, 120)),
        "Photo age",
        "With mode 'age': age in the photo, in years; null: estimated where insightface can, else not known.",
    )
    expression: str = setting(
        "", Text(500), "Expression", "With mode 'expression': the expression in words; empty: smiling."
    )
    mode_words: bool = setting(
        True, Flag(), "Mode words", "Whether the mode's words are added to the prompt; they are shown before."
    )
    retouch: str = setting(
        "auto",
        Choice(("auto", "on", "off")),
        "Retouch photo",
        "Takes tint, creases and grain out of the reference photo; auto: where the mode wants it and the photo is old.",
    )
    restorer: str = setting(
        "auto",
        Choice(("auto", "off", "GFPGAN", "CodeFormer")),
        "Face restorer",
        "Restores the face in the reference photo; auto: where the mode wants it and a restorer is installed.",
    )
    free_parts: bool = setting(
        False,
        Flag(),
        "Free parts",
        "Parts of the face that are left to the text follow the picture without the adapter (FreeCure), for one more "
        "row of computing.",
    )
    hires: Hires = setting(Hires(), RecordOf(Hires), "Hires", "What the hires pass does differently.")
    face_pass: FacePass = setting(FacePass(), RecordOf(FacePass), "Face pass", "Makes finished faces anew, enlarged.")
    performance: Performance = setting(Performance(), RecordOf(Performance), "Performance", "Speed against memory.")
    report: Report = setting(Report(), RecordOf(Report), "Reports", "What is handed back besides the picture.")

    @property
    def identities(self) -> int:
        """Number of persons in the photos."""
        return len({reference.identity for reference in self.references})

    def in_hires_pass(self) -> Settings:
        """The request as the hires pass takes it."""
        if self.hires.use == "own":
            return dataclasses.replace(self, weight=self.hires.weight, span=self.hires.span)
        return dataclasses.replace(self, enabled=self.enabled and self.hires.use != "off")

    def _check_together(self) -> None:
        known = {reference.identity for reference in self.references}
        free = next(identity for identity in range(len(known) + 1) if identity not in known)
        for index, reference in enumerate(self.references):
            if reference.identity > free:
                with within(f"references[{index}].identity"):
                    raise refusal(
                        f"{reference.identity} ({naming.person(reference.identity)}) leaves a gap: no photo shows "
                        f"{naming.person(free)}",
                        f"Use {free}.",
                        free,
                    )
        for index, region in enumerate(self.regions):
            if known and region.identity not in known:
                with within(f"regions[{index}].identity"):
                    persons, last = count(len(known), "person"), len(known) - 1
                    problem = f"{region.identity} is nobody: the photos show {persons}, and {region.identity} means "
                    problem += naming.person(region.identity)
                    raise refusal(problem, f"Use {last}, which is {naming.person(last)}.", last)

    def replace(self, **changes: Any) -> Settings:
        """A copy with top-level fields changed.

        Raises:
            SettingsError: there is no such field, or the result is not valid.
        """
        names = {info.name: info for info in fields_of(Settings)}
        for name in changes:
            if name not in names:
                raise unknown_key_error(name, Settings)
        return dataclasses.replace(self, **changes)

    def with_field(self, path: str, value: object) -> Settings:
        """A copy with the field at a dotted path changed, as in ``with_field("references[0].weight", 0.5)``."""
        return self.with_fields({path: value})

    def with_fields(self, changes: Mapping[str, object]) -> Settings:
        """A copy with several fields changed at once, for those that are only valid together (mode and target age).

        Args:
            changes: values by dotted path, as Python values or in their JSON form.

        Raises:
            SettingsError: no field has this path, or the result is not valid.
        """
        if not changes:
            return self
        tree = self.to_dict()
        for path, value in changes.items():
            set_at(Settings, tree, path, to_json(value))
        return Settings.from_dict(tree)

    def to_dict(self, *, changed_only: bool = False) -> dict[str, Any]:
        """The request as plain JSON types, with its version; ``changed_only`` leaves out fields at their defaults."""
        return {"version": VERSION, **encode(self, changed_only=changed_only)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """Reads what ``to_dict`` writes; fields that are not given take their defaults, no version means this one.

        Raises:
            SettingsError: unknown key, wrong type, out of range, fields that contradict each other, newer version.
        """
        try:
            return decode(cls, _without_version(data))
        except SettingsError as error:
            if error.field:
                raise
            with within("settings"):
                raise

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Reads the JSON text of ``to_dict``'s result; raises as ``from_dict`` does, and for text that is not JSON."""
        try:
            data = json.loads(text)
        except RecursionError:
            raise SettingsError("settings", "the JSON is nested too deeply", "Check the brackets.") from None
        except json.JSONDecodeError as error:
            raise SettingsError("settings", f"this is not JSON: {error}", "Correct it there.") from None
        except ValueError:  # Python refuses to read whole numbers of more than 4300 digits
            raise SettingsError("settings", "a number in it has thousands of digits", "Shorten it.") from None
        return cls.from_dict(data)


def _without_version(data: object) -> object:
    if not isinstance(data, Mapping) or "version" not in data:
        return cast("object", data)
    fields = dict(cast("Mapping[object, object]", data))
    version = fields.pop("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise SettingsError("version", f"{show(version)} is not a version of the settings", f"Use {VERSION}.", VERSION)
    if version > VERSION:
        problem = f"{show(version)} is newer than {VERSION}, the newest that this program knows"
        raise SettingsError("version", problem, "Update DP-Adapter.", VERSION)
    return fields
