"""The scores of one picture: identity, prompt consistency, and what changed against the base model's picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dp_adapter.errors import FaceError
from dp_adapter.evaluation import picture_metrics
from dp_adapter.evaluation.identity_judges import IdentityJudge
from dp_adapter.evaluation.picture_metrics import Floats
from dp_adapter.identity.faces.detector import Detector, YuNet
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_parsing import FaceParser, SelfieParser
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.small_base.caption_check import CaptionCheck

_GROWTH = 0.1  # as automatic regions are (settings, tracking.grow), so that the region's rim counts as face


@dataclass(frozen=True)
class Metric:
    """One column of the report; ``better`` is 1 where more is better, -1 where less is, 0 where neither."""

    name: str
    label: str
    better: int
    digits: int = 3


IDENTITY, PROMPT, PRESERVATION, OUTSIDE, HARMONIC = "identity", "prompt", "preserved", "outside", "harmonic"
METRICS = (
    Metric(IDENTITY, "identity", 1),
    Metric("identity_other", "identity, another photo", 1),
    Metric(PROMPT, "prompt consistency", 1),
    Metric(HARMONIC, "harmonic mean", 1),
    Metric(PRESERVATION, "base preservation", 1),
    Metric(OUTSIDE, "drift outside the face", -1, 4),
    Metric("inside", "drift inside the face", 0, 4),
    Metric("colour", "colour distance outside", -1, 2),
    Metric("detected", "face found", 1, 2),
    Metric("seconds", "seconds a picture", -1, 2),
)


@dataclass(frozen=True)
class Scores:
    """Scores by the name of their metric, where measured; the caption's statements, where those are measured."""

    values: dict[str, float]
    statements: dict[str, bool] = field(default_factory=dict[str, bool])


class PromptJudge(Protocol):
    """Scores how far a picture shows a text, and how alike two pictures are."""

    @property
    def title(self) -> str: ...

    def consistency(self, picture: Picture, text: str) -> tuple[float, dict[str, bool]]:
        """A score, and the statements that it is made of, if any."""
        ...

    def preservation(self, picture: Picture, base: Picture, outside: Floats) -> float | None:
        """How alike a picture and the base model's of the same seed are; ``outside`` [H, W] is 0 in the face."""
        ...


class SceneJudge:
    """For the small base: the share of true statements; SSIM outside the face."""

    title = "share of the caption's statements that are measured to be true; base preservation: SSIM outside the face"

    def __init__(self) -> None:
        self._check = CaptionCheck()

    def consistency(self, picture: Picture, text: str) -> tuple[float, dict[str, bool]]:
        """See `PromptJudge`. Raises SettingsError for a text that is no caption of the small base."""
        verdict = self._check.check(picture, text)
        return verdict.score, {str(one): true for one, true in verdict.statements}

    def preservation(self, picture: Picture, base: Picture, outside: Floats) -> float | None:
        """See `PromptJudge`."""
        return picture_metrics.structural_similarity(picture, base, outside)


@dataclass(frozen=True, eq=False)
class ReferenceVectors:
    """The judge's vectors of a person's photo [D], and of other photos of the same person."""

    photo: Floats
    others: tuple[Floats, ...]


class Scorer:
    """Scores pictures against a person's photos, a prompt and the base model's picture of the same seed."""

    def __init__(
        self,
        judge: IdentityJudge,
        prompts: PromptJudge,
        detector: Detector | None = None,
        parser: FaceParser | None = None,
    ) -> None:
        self.judge = judge
        self.prompts = prompts
        self._detector = detector or YuNet(tiles=False)
        self._parser = parser or SelfieParser()

    def read_reference(self, name: str, photo: Picture, others: Sequence[Picture] = ()) -> ReferenceVectors:
        """Computes the judge's vectors of a person's photos.

        Raises:
            FaceError: a photo shows no face.
        """
        vectors: list[Floats] = []
        for picture in (photo, *others):
            face = self.find_face(picture)
            if face is None:
                raise FaceError(f"The judge finds no face in a photo of {name}", "Give another photo, or leave it out.")
            vectors.append(self.judge.vector(picture, face))
        return ReferenceVectors(vectors[0], tuple(vectors[1:]))

    def find_face(self, picture: Picture) -> Face | None:
        """The largest face."""
        return max(self._detector.detect(picture), key=lambda face: face.size, default=None)

    def mask_base_face(self, base: Picture) -> Floats:
        """M [H, W]: the face in the base model's picture, widened as automatic regions are; 0 where it has none."""
        face = self.find_face(base)
        if face is None:
            return np.zeros(base.shape[:2], np.float32)
        return picture_metrics.grow(self._parser.parse(base, face)["face"], _GROWTH)

    def score_both(self, picture: Picture, reference: ReferenceVectors, text: str) -> tuple[float, float]:
        """The scores of identity and prompt consistency alone."""
        face = self.find_face(picture)
        identity = 0.0 if face is None else picture_metrics.cosine(self.judge.vector(picture, face), reference.photo)
        return identity, self.prompts.consistency(picture, text)[0]

    def score(
        self, picture: Picture, reference: ReferenceVectors, text: str, base: Picture, region: Floats, seconds: float
    ) -> Scores:
        """All scores of one picture; those against the base model are missing where it is the base model's own."""
        face = self.find_face(picture)
        vector = None if face is None else self.judge.vector(picture, face)
        values = {IDENTITY: 0.0 if vector is None else picture_metrics.cosine(vector, reference.photo)}
        if reference.others:
            alike = [0.0 if vector is None else picture_metrics.cosine(vector, other) for other in reference.others]
            values["identity_other"] = float(np.mean(alike))
        values[PROMPT], statements = self.prompts.consistency(picture, text)
        values[HARMONIC] = picture_metrics.harmonic(values[IDENTITY], values[PROMPT])
        if picture is not base:
            outside = (1 - region).astype(np.float32)
            compared = {
                PRESERVATION: self.prompts.preservation(picture, base, outside),
                OUTSIDE: picture_metrics.drift(picture, base, outside),
                "inside": picture_metrics.drift(picture, base, region),
                "colour": picture_metrics.colour_distance(picture, base, outside),
            }
            values |= {name: value for name, value in compared.items() if value is not None}
        return Scores(values | {"detected": float(face is not None), "seconds": seconds}, statements)
