"""What is asked of a finished picture: which candidate is kept, which is left out, and how far it drifted."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def judged(report: Report) -> bool:
    """Whether somebody has to look at the finished pictures."""
    return report.enabled or report.drift or report.best_of > 1 or report.least is not None


def describing(settings: Settings, mode: Mode) -> Settings:
    """The request as it describes one picture: without what it does not read.

    That picture is the kept candidate: made again, there is nothing to choose.

    Args:
        mode: the request's.
    """
    settings = drop_unread_fields(settings, mode)
    hires, faces = settings.hires, settings.face_pass
    enlarges = faces.use == "on" or (faces.use == "auto" and mode.face_pass)
    return settings.replace(
        references=tuple(replace(one, face=one.face and _chosen(one.face)) for one in settings.references),
        face=_chosen(settings.face),
        regions=tuple(_drawn(one) for one in settings.regions),
        hires=hires if hires.use == "own" else Hires(use=hires.use),
        face_pass=faces if enlarges else FacePass(use=faces.use),
        report=replace(settings.report, best_of=1, least=None, below="keep"),
    )


def _chosen(face: FaceChoice) -> FaceChoice:
    return replace(
        face, index=face.index if face.choice == "index" else 0, like=face.like if face.choice == "like" else ""
    )


def _drawn(region: Region) -> Region:
    kind = region.kind
    return replace(region, box=region.box if kind == "box" else None, mask=region.mask if kind == "mask" else "")


def candidate_seed(seed: int, number: int) -> int:
    """The seed of a candidate; number 0 is the picture as it was asked for."""
    return (seed + number * STRIDE) % _SEEDS if number and seed < _SEEDS else seed + number * STRIDE


def enough(report: Report, verdict: LikenessVerdict) -> bool:
    """Whether a picture is as alike as was asked for."""
    return report.least is not None and verdict.least is not None and verdict.least >= report.least


def too_little(report: Report, verdict: LikenessVerdict) -> bool:
    """Whether a picture is less alike than was asked for; False where nobody can be judged."""
    return report.least is not None and verdict.least is not None and verdict.least < report.least


def best(
    first: Candidate[Made], report: Report, make: Callable[[int], Candidate[Made] | None]
) -> tuple[Candidate[Made], int]:
    """The candidate to keep, and how many there were.

    Args:
        make: makes one more, given its number; None ends the search.
    """
    kept, made = first, 1
    while made < report.best_of and kept.verdict.least is not None and not enough(report, kept.verdict):
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


def drift(picture: Picture, plain: Picture, region: Mask | None) -> Drift:
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


def facts(judge: str, verdict: LikenessVerdict, kept: int, candidates: int, moved: Drift | None) -> dict[str, str]:
    """What was measured, as short texts by name; persons are numbered from 1 where there are several.

    Args:
        kept: number of the kept candidate, from 0.
    """
    told = {"judge": judge, "faces": str(verdict.faces)}
    for person, alike in verdict.likeness.items():
        name = "likeness" if len(verdict.likeness) == 1 else f"likeness {person + 1}"
        told[name] = "no face" if alike is None else f"{alike:.3f}"
    if candidates > 1:
        told["candidate"] = f"{kept + 1} of {candidates}"
    if moved is not None:
        told["drift outside"] = "nothing is outside" if moved.outside is None else f"{moved.outside:.6f}"
        if moved.inside is not None:
            told["drift inside"] = f"{moved.inside:.6f}"
    return told


def sentence(judge: str, verdict: LikenessVerdict, kept: int, candidates: int, moved: Drift | None) -> str:
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
    if moved is not None and moved.outside is None:
        parts.append("an identity acts everywhere, so nothing is outside of it to drift")
    elif moved is not None and moved.outside is not None:
        level = f", {-10 * math.log10(moved.outside):.1f} dB" if moved.outside > 0 else ""
        parts.append(f"outside the identity's region it differs by {moved.outside:.6f} (mean square{level})")
    return "; ".join(parts)
