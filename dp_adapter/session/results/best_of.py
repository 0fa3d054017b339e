"""What is asked of a finished picture: which candidate is kept, which is left out, and how far it drifted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from dp_adapter import naming
from dp_adapter.modes import Mode, drop_unread_fields
from dp_adapter.session.results.judge import LikenessVerdict
from dp_adapter.session.scene import Mask, Picture
from dp_adapter.settings import FaceChoice, FacePass, Hires, Region, Report, Settings

STRIDE = 1_000_003  # between the seeds of candidates: more than any job has pictures, whose seeds count up by 1
_SEEDS = 2**32
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Candidate(Generic[Made]):
    """One finished picture of several that were made for the same place; ``number`` counts from 0."""

    number: int
    verdict: LikenessVerdict
    made: Made


@dataclass(frozen=True)
class Drift:
    """Mean squared difference to the picture without the identity, of values in 0..1.

    Attributes:
        outside: where no identity acts; None when one acts everywhere.
        inside: where one does.
    """

    outside: float | None
    inside: float | None


def needs_judge(report: Report) -> bool:
    """Whether somebody has to look at the finished pictures."""
    return report.enabled or report.drift or report.best_of > 1 or report.least is not None


def describe_picture(settings: Settings, mode: Mode) -> Settings:
    """The request as it describes one picture: without what it does not read.

    That picture is the kept candidate: made again, there is nothing to choose.

    Args:
        mode: the request's.
    """
    settings = drop_unread_fields(settings, mode)
    hires, faces = settings.hires, settings.face_pass
    enlarges = faces.use == "on" or (faces.use == "auto" and mode.face_pass)
    return settings.replace(
        references=tuple(replace(one, face=one.face and _strip_face(one.face)) for one in settings.references),
        face=_strip_face(settings.face),
        regions=tuple(_strip_region(one) for one in settings.regions),
        hires=hires if hires.use == "own" else Hires(use=hires.use),
        face_pass=faces if enlarges else FacePass(use=faces.use),
        report=replace(settings.report, best_of=1, least=None, below="keep"),
    )


def _strip_face(face: FaceChoice) -> FaceChoice:
    return replace(
        face, index=face.index if face.choice == "index" else 0, like=face.like if face.choice == "like" else ""
    )


def _strip_region(region: Region) -> Region:
    kind = region.kind
    return replace(region, box=region.box if kind == "box" else None, mask=region.mask if kind == "mask" else "")


def candidate_seed(seed: int, number: int) -> int:
    """The seed of a candidate; number 0 is the picture as it was asked for."""
    return (seed + number * STRIDE) % _SEEDS if number and seed < _SEEDS else seed + number * STRIDE


def is_enough(report: Report, verdict: LikenessVerdict) -> bool:
    """Whether a picture is as alike as was asked for."""
    return report.least is not None and verdict.least is not None and verdict.least >= report.least


def is_too_little(report: Report, verdict: LikenessVerdict) -> bool:
    """Whether a picture is less alike than was asked for; False where nobody can be judged."""
    return report.least is not None and verdict.least is not None and verdict.least < report.least


@dataclass(frozen=True, eq=False)
class ChosenPicture(Generic[Made]):
    """The candidate that is handed back, and what is said about it.

    Attributes:
        facts: what was measured, as short texts by name.
        sentence: the same in words.
        left_out: whether it is less like the photos than was asked for, and such pictures are not to be kept.
    """

    candidate: Candidate[Made]
    facts: Mapping[str, str]
    sentence: str
    left_out: bool


def choose(
    judge: str,
    report: Report,
    first: Candidate[Made],
    make: Callable[[int], Candidate[Made] | None],
    compare: Callable[[Candidate[Made]], Drift | None],
) -> ChosenPicture[Made]:
    """The best of a picture's candidates, judged and compared as the report asks.

    Args:
        judge: its name.
        first: the picture as it was asked for.
        make: makes one more candidate, given its number; None ends the search.
        compare: measures how far the chosen one drifted, where the report asks for that; None where it could not.
    """
    kept, candidates = find_best(first, report, make)
    drift = compare(kept) if report.drift else None
    measured = (judge, kept.verdict, kept.number, candidates, drift)
    return ChosenPicture(kept, list_facts(*measured), write_sentence(*measured), is_left_out(report, kept.verdict))


def is_left_out(report: Report, verdict: LikenessVerdict) -> bool:
    """Whether a picture is not to be kept."""
    return report.below == "skip" and is_too_little(report, verdict)


def find_best(
    first: Candidate[Made], report: Report, make: Callable[[int], Candidate[Made] | None]
) -> tuple[Candidate[Made], int]:
    """The candidate to keep, and how many there were.

    Args:
        make: makes one more, given its number; None ends the search.
    """
    kept, made = first, 1
    while made < report.best_of and kept.verdict.least is not None and not is_enough(report, kept.verdict):
        another = make(made)
        if another is None:
            break
        made += 1
        if _rank(another.verdict) > _rank(kept.verdict):
            kept = another
    return kept, made


def _rank(verdict: LikenessVerdict) -> tuple[float, float]:
    """By the person who is met worst, then by all of them."""
    alike = [-1.0 if one is None else one for one in verdict.likeness.values()]
    return min(alike), sum(alike)


def measure_drift(picture: Picture, plain: Picture, region: Mask | None) -> Drift:
    """Compares a picture with the one that the same seed makes without the identity.

    Args:
        picture, plain: [h, w, 3] of one size.
        region: [h, w] in 0..1, where an identity acts; None is everywhere.
    """
    square = (((picture.astype(np.float32) - plain) / 255) ** 2).mean(-1)  # [h, w]
    share = np.ones(square.shape, np.float32) if region is None else region
    return Drift(_mean(square, 1 - share), _mean(square, share))


def _mean(values: Mask, weights: Mask) -> float | None:
    """Weighted mean; None where less than one pixel weighs."""
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total >= 1 else None


def list_facts(judge: str, verdict: LikenessVerdict, kept: int, candidates: int, drift: Drift | None) -> dict[str, str]:
    """What was measured, as short texts by name; persons are numbered from 1 where there are several.

    Args:
        kept: number of the kept candidate, from 0.
    """
    facts = {"judge": judge, "faces": str(verdict.faces)}
    for person, alike in verdict.likeness.items():
        name = "likeness" if len(verdict.likeness) == 1 else f"likeness {person + 1}"
        facts[name] = "no face" if alike is None else f"{alike:.3f}"
    if candidates > 1:
        facts["candidate"] = f"{kept + 1} of {candidates}"
    if drift is not None:
        facts["drift outside"] = "nothing is outside" if drift.outside is None else f"{drift.outside:.6f}"
        if drift.inside is not None:
            facts["drift inside"] = f"{drift.inside:.6f}"
    return facts


def write_sentence(judge: str, verdict: LikenessVerdict, kept: int, candidates: int, drift: Drift | None) -> str:
    """The same in words."""
    found = "1 face" if verdict.faces == 1 else f"{verdict.faces} faces"
    alike = {person: "not found" if one is None else f"{one:.2f}" for person, one in verdict.likeness.items()}
    if len(alike) > 1:
        listed = ", ".join(f"{naming.person(person)} {one}" for person, one in alike.items())
        parts = [f"{found}, likeness by {judge}: {listed}"]
    else:
        parts = [f"{found}, likeness {one} by {judge}" for one in alike.values()] or [
            f"{found}, nobody to compare with"
        ]
    if candidates > 1:
        parts.append(f"candidate {kept + 1} of {candidates}")
    if drift is not None and drift.outside is None:
        parts.append("an identity acts everywhere, so nothing is outside of it to drift")
    elif drift is not None and drift.outside is not None:
        level = f", {-10 * math.log10(drift.outside):.1f} dB" if drift.outside > 0 else ""
        parts.append(f"outside the identity's region it differs by {drift.outside:.6f} (mean square{level})")
    return "; ".join(parts)
