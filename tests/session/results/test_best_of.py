"""Which candidate is kept, which picture is left out, how far one drifted, and whose face is whose."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp_adapter.identity.faces.face import Face
from dp_adapter.modes import TABLE
from dp_adapter.session import Session
from dp_adapter.session.results import acted_regions, best_of
from dp_adapter.session.results.judge import Judge, LikenessVerdict, assign, find
from dp_adapter.settings import FacePass, Report, Settings


def verdict(*alike: float | None) -> LikenessVerdict:
    return LikenessVerdict(len(alike), dict(enumerate(alike)))


def chosen(asked: Report, *verdicts: LikenessVerdict) -> tuple[int, int]:
    """Number of the kept candidate and how many were made, when they come out so."""
    made = [best_of.Candidate(number, one, None) for number, one in enumerate(verdicts)]
    kept, many = best_of.find_best(made[0], asked, lambda number: made[number] if number < len(made) else None)
    return kept.number, many


def test_the_most_alike_is_kept_and_the_first_of_equals() -> None:
    four = Report(best_of=4)
    assert chosen(four, *map(verdict, (0.2, 0.5, 0.4, 0.5))) == (1, 4)
    assert chosen(four, *map(verdict, (None, 0.1))) == (1, 2), "nobody is found in the first"
    assert chosen(four, *map(verdict, (None, None, None, None))) == (0, 4)
    assert chosen(Report(), verdict(0.1), verdict(0.9)) == (0, 1)


def test_a_good_one_ends_the_search() -> None:
    assert chosen(Report(best_of=4, least=0.4), *map(verdict, (0.2, 0.4, 0.9))) == (1, 2)
    assert chosen(Report(best_of=4, least=0.1), *map(verdict, (0.2, 0.4, 0.9))) == (0, 1)


def test_of_several_persons_the_worst_met_one_counts() -> None:
    assert chosen(Report(best_of=3), verdict(0.9, 0.1), verdict(0.4, 0.3), verdict(0.8, None)) == (1, 3)
    assert chosen(Report(best_of=2), verdict(0.3, None), verdict(0.5, None)) == (1, 2), "then all of them"
    asked = Report(least=0.3)
    assert best_of.is_enough(asked, verdict(0.4, 0.3)) and best_of.is_too_little(asked, verdict(0.9, 0.2))
    assert best_of.is_too_little(asked, verdict(None)) and not best_of.is_too_little(Report(), verdict(None))


def test_nobody_to_compare_with_is_no_reason_to_search_or_to_skip() -> None:
    asked = Report(best_of=4, least=0.3, below="skip")
    assert chosen(asked, verdict(), verdict()) == (0, 1)
    assert not best_of.is_too_little(asked, verdict()) and not best_of.is_enough(asked, verdict())


def test_seeds_of_candidates() -> None:
    seeds = {best_of.candidate_seed(seed, number) for seed in range(500) for number in range(16)}
    assert len(seeds) == 500 * 16, "no two of a batch meet"
    assert best_of.candidate_seed(7, 0) == 7 and best_of.candidate_seed(2**32 - 1, 1) == best_of.STRIDE - 1
    assert best_of.candidate_seed(2**40, 0) == 2**40 < best_of.candidate_seed(2**40, 1)


def test_what_describes_a_picture_makes_no_choice() -> None:
    asked = Settings.from_dict({"weight": 0.5, "report": {"best_of": 4, "least": 0.3, "below": "skip", "drift": True}})
    described = best_of.describe_picture(asked, TABLE[asked.mode])
    assert described == Settings.from_dict({"weight": 0.5, "report": {"drift": True}})


def test_what_a_request_does_not_read_describes_no_picture() -> None:
    photo = {"image": "a.png", "face": {"choice": "index", "index": 2, "like": "b.png"}}
    left: dict[str, Any] = {
        "references": [photo],
        "face": {"index": 3, "like": "c.png"},
        "regions": [{"kind": "full", "box": {"x0": 0.5}, "mask": "m.png"}],
        "hires": {"use": "off", "weight": 0.3},
        "face_pass": {"size": 768, "strength": 0.2},
        "target_age": 60,
    }
    described = best_of.describe_picture(Settings.from_dict(left), TABLE["portrait"])
    assert described.to_dict(changed_only=True) == {
        "version": 1,
        "references": [{"image": "a.png", "face": {"choice": "index", "index": 2}}],
        "regions": [{"kind": "full"}],
        "hires": {"use": "off"},
    }
    enlarging = best_of.describe_picture(Settings.from_dict({**left, "mode": "full_body"}), TABLE["full_body"])
    assert enlarging.face_pass == FacePass(size=768, strength=0.2)


def test_drift() -> None:
    plain = np.full((8, 8, 3), 100, np.uint8)
    picture, region = plain.copy(), np.zeros((8, 8), np.float32)
    region[:, 4:] = 1
    picture[:, 4:] += 51
    moved, everywhere = best_of.measure_drift(picture, plain, region), best_of.measure_drift(picture, plain, None)
    assert (moved.outside, moved.inside) == (0, pytest.approx(0.04))
    assert (everywhere.outside, everywhere.inside) == (None, pytest.approx(0.02))
    assert best_of.measure_drift(picture, plain, np.zeros((8, 8), np.float32)).inside is None
    half = best_of.measure_drift(
        picture, plain, region * np.float32(0.5)
    )  # a soft region counts on both sides by its share
    assert half.outside == pytest.approx(0.04 / 3) and half.inside == pytest.approx(0.04)


def test_in_short_and_in_words() -> None:
    moved = best_of.Drift(0.0001, 0.02)
    assert best_of.list_facts("SFace", verdict(0.51239), 2, 4, moved) == {
        "judge": "SFace", "faces": "1", "likeness": "0.512", "candidate": "3 of 4", "drift outside": "0.000100",
        "drift inside": "0.020000",
    }  # fmt: skip
    two = best_of.list_facts("SFace", LikenessVerdict(1, {0: 0.5, 1: None}), 0, 1, best_of.Drift(None, 0.1))
    assert two["likeness 1"] == "0.500" and two["likeness 2"] == "no face" and "candidate" not in two
    said = best_of.write_sentence("SFace", LikenessVerdict(1, {0: 0.5, 1: None}), 0, 2, moved)
    assert said == (
        "1 face, likeness by SFace: person 1 0.50, person 2 not found; candidate 1 of 2; "
        "outside the identity's region it differs by 0.000100 (mean square, 40.0 dB)"
    )
    assert "nobody to compare with" in best_of.write_sentence("SFace", verdict(), 0, 1, None)
    assert "mean square)" in best_of.write_sentence("SFace", verdict(0.5), 0, 1, best_of.Drift(0.0, None))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (2, 3), (3, 3), (4, 6), (3, 2)])
def test_faces_go_to_whom_they_suit_best_together(shape: tuple[int, int]) -> None:
    persons, faces = shape
    for seed in range(5):
        scores = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
        columns = assign(scores)
        served = [(person, face) for person, face in enumerate(columns) if face is not None]
        assert len(served) == min(shape) == len({face for _, face in served})
        if persons <= faces:
            best = max(sum(scores[p, f] for p, f in enumerate(way)) for way in permutations(range(faces), persons))
        else:
            best = max(sum(scores[p, f] for f, p in enumerate(way)) for way in permutations(range(persons), faces))
        assert sum(scores[pair] for pair in served) == pytest.approx(best, abs=1e-5)


def test_no_faces_are_nobodys() -> None:
    assert assign(np.zeros((3, 0), np.float32)) == (None, None, None) and assign(np.zeros((0, 3), np.float32)) == ()


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session([tmp_path], True)


def beside(portrait: Path, mirrored: bool = False) -> np.ndarray:
    """A sharp face at the left and a blurred one at the right, 256 x 512; or the other way round."""
    from PIL import ImageFilter

    with Image.open(portrait) as picture:
        sharp = picture.convert("RGB").resize((256, 256))
    pair = [np.asarray(sharp), np.asarray(sharp.filter(ImageFilter.GaussianBlur(3)))]
    return np.concatenate(pair[::-1] if mirrored else pair, axis=1)


def test_the_judge(session: Session, portrait: Path, faceless: Path) -> None:
    two = Settings.from_dict({"references": [{"image": str(portrait)}, {"image": str(portrait), "identity": 1}]})
    one = two.replace(references=two.references[:1])
    judge = Judge(session, one, ("sface",))
    assert judge.name == "SFace, which also guided the picture" and Judge(session, one, ("arcface",)).name == "SFace"
    for mirrored in (False, True):
        seen = judge.see(beside(portrait, mirrored))
        assert seen.faces == 2 and seen.likeness[0] is not None and seen.likeness[0] > 0.95, "the sharp one is theirs"
    assert judge.see(np.asarray(Image.open(faceless).convert("RGB"))) == LikenessVerdict(0, {0: None})
    both = Judge(session, two).see(beside(portrait))
    assert both.least is not None and 0 < both.least < 0.9, "the second person gets the face that is left"
    nobody = Settings.from_dict({"references": [{"image": str(faceless)}]})
    assert Judge(session, nobody).unknown == (0,) and Judge(session, nobody).see(beside(portrait)).least is None


def test_a_region_says_whose_face_it_is(session: Session, portrait: Path) -> None:
    picture = beside(portrait)
    settings = Settings.from_dict({"references": [{"image": str(portrait)}, {"image": str(portrait), "identity": 1}]})
    judge, faces = Judge(session, settings), find(session.encoders, picture)
    left, right = np.zeros((64, 128), np.float32), np.zeros((64, 128), np.float32)
    left[:, :64], right[:, 64:] = 1, 1

    def places_of(regions: dict[int, np.ndarray | None]) -> dict[int, str]:
        theirs: dict[int, Face] = judge.whose(picture, faces, regions)
        return {person: "left" if face.centre[0] < 256 else "right" for person, face in theirs.items()}

    assert places_of({0: left, 1: right}) == {0: "left", 1: "right"}
    assert places_of({0: right, 1: left}) == {0: "right", 1: "left"}
    assert places_of({0: right}) == {0: "right"} and places_of({0: None}) == {0: "left"}


def test_the_union_of_regions_on_the_whole_picture() -> None:
    half = np.zeros((4, 4), np.float32)
    half[:, 2:] = 1
    assert acted_regions.union({0: half, 1: None}, (8, 8)) is None
    whole = acted_regions.union({0: half, 1: 1 - half}, (4, 4))
    assert whole is not None and whole.min() == 1
    cut = acted_regions.union({0: half}, (16, 12), (4, 2, 4, 4))
    assert cut is not None and cut.shape == (12, 16) and cut.sum() == 8 and cut[2:6, 6:8].min() == 1
    everywhere = acted_regions.union({0: None}, (16, 12), (12, 8, 8, 8))  # beyond the edge, as the hosts' cuts may be
    assert everywhere is not None and everywhere.sum() == 16
    nowhere = acted_regions.union({}, (4, 4))
    assert nowhere is not None and nowhere.max() == 0
