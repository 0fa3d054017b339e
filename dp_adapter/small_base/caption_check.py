"""Checks whether a picture shows what its caption says, by segmentation, face detection and colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_parsing import SelfieParser
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.small_base import portrait_facts as facts
from dp_adapter.small_base import scene_measures as measures
from dp_adapter.small_base.caption_grammar import PLACES, CaptionFacts, Statement, parse_caption
from dp_adapter.small_base.pixel_labels import label_pixels
from dp_adapter.small_base.portrait_facts import HairMeasure
from dp_adapter.small_base.scene_measures import SIDE, LabelledPicture

_SMALL, _LARGE = 0.29, 0.53  # heights of a face, in heights of the picture: full body below, close-up above


@dataclass(frozen=True)
class Head:
    """Measures of the largest head; ``teeth`` is None where its mouth is cut off."""

    height: float
    place: str
    hair: HairMeasure
    glasses: float
    teeth: float | None

    def confirms(self, stated: Statement) -> bool:
        """Whether a statement about one person is true."""
        value = stated.value
        if stated.kind == "size":
            return self.height > _LARGE if value == "close-up" else self.height < _SMALL
        if stated.kind == "place":
            return self.place == value
        if stated.kind == "hair":
            return self.hair.can_be(value)
        if stated.kind == "glasses":
            return (self.glasses > facts.GLASSES[1]) == (value == "yes")
        return self.teeth is not None and (self.teeth > facts.TEETH[1]) == (value == "yes")


@dataclass(frozen=True)
class MeasuredPicture:
    """Everything that captions can state, measured in one picture.

    Attributes:
        people: faces found; head: the largest one's, None without a face.
        clothes: colour by place of the person, and under "" of the largest one; None where it cannot be seen.
        background: None where too little of it is seen.
    """

    grey: bool
    people: int
    head: Head | None
    clothes: dict[str, str | None]
    background: str | None
    pattern: str

    def confirms(self, stated: Statement) -> bool:
        """Whether a statement is true; every statement about a person who is not found is false."""
        kind, value = stated.kind, stated.value
        whole: dict[str, bool] = {
            "medium": self.grey == (value == "grey"),
            "background": self.background == value,
            "pattern": self.pattern == value,
            "people": str(self.people) == value,
            "clothes": self.clothes.get(stated.where) == value,
        }
        return whole[kind] if kind in whole else self.head is not None and self.head.confirms(stated)

    @property
    def facts(self) -> CaptionFacts:
        """What is certain enough of the person to stand in a caption."""
        if self.head is None:
            return CaptionFacts()
        glasses = facts.decide(self.head.glasses, facts.GLASSES)
        return CaptionFacts(self.head.hair.strict, glasses, facts.decide(self.head.teeth, facts.TEETH))


@dataclass(frozen=True)
class CaptionVerdict:
    """Every statement of a caption with whether it is true of the picture."""

    statements: tuple[tuple[Statement, bool], ...]

    @property
    def score(self) -> float:
        """Share of the true ones."""
        return sum(true for _, true in self.statements) / len(self.statements)


class CaptionCheck:
    """Measures pictures of the small base with the shipped networks."""

    def __init__(self) -> None:
        self._detector = YuNet(tiles=False)
        self._parser = SelfieParser()

    def check(self, picture: Picture, caption: str) -> CaptionVerdict:
        """Judges every statement of a caption on a nearly square picture [H, W, 3].

        Raises:
            SettingsError: the caption is not of the grammar.
        """
        asked = parse_caption(caption)
        measured = self.measure(picture)
        return CaptionVerdict(tuple((one, measured.confirms(one)) for one in asked))

    def measure(self, picture: Picture) -> MeasuredPicture:
        """Measures everything that captions can state in a picture [H, W, 3]."""
        whole = measures.resize(picture, SIDE)
        faces = sorted(self._detector.detect(whole), key=lambda face: float(face.centre[0]))
        seen = LabelledPicture(whole, measures.to_lab(whole), label_pixels(self._parser, whole, faces), tuple(faces))
        kind = measures.background_pattern(seen).name
        return MeasuredPicture(
            grey=measures.is_grey(seen),
            people=len(faces),
            head=self._head(seen),
            clothes={where: measures.clothes_colour(seen, where) for where in ("", *PLACES)},
            background=measures.background_colour(seen, kind != "plain"),
            pattern=kind,
        )

    def _head(self, seen: LabelledPicture) -> Head | None:
        face: Face | None = max(seen.faces, key=lambda one: one.size, default=None)
        if face is None:
            return None
        crop, points = measures.crop_head(seen.picture, face)
        inside = Face(np.array([*points.min(0), *points.max(0)], np.float32), points, face.score)
        labels, lab = label_pixels(self._parser, crop, [inside], drawing=False), measures.to_lab(crop)
        return Head(
            height=float(face.box[3] - face.box[1]) / SIDE,
            place=measures.side_of(face),
            hair=facts.measure_hair(lab, labels),
            glasses=facts.glasses_share(labels, points),
            teeth=facts.teeth_share(lab, points),
        )
