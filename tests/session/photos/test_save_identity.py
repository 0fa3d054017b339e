"""Several photos, several people, several faces in a photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dp_adapter.errors import FaceError
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.session import Prepared, Session
from dp_adapter.session.results.judge import reference_vector
from tests.session.conftest import SCENE, Request

SIDE = 320


@pytest.fixture(scope="module")
def group(people: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people beside each other; the middle one is the largest."""
    canvas = Image.new("RGB", (4 * SIDE, 2 * SIDE), "gray")
    for index, (left, top, width) in enumerate(((0, 0, SIDE), (SIDE, 0, 2 * SIDE), (3 * SIDE, SIDE // 2, SIDE))):
        with Image.open(people[2 * index]) as photo:
            canvas.paste(photo.convert("RGB").resize((width, width * photo.height // photo.width)), (left, top))
    path = tmp_path_factory.mktemp("group") / "group.png"
    canvas.save(path)
    return path


def chosen(prepared: Prepared) -> int | None:
    (person,) = prepared.explanation.persons
    (photo,) = person.photos
    assert photo.faces == 3
    return photo.chosen


@pytest.mark.parametrize(
    ("face", "place"),
    [
        ({}, 1),
        ({"choice": "left"}, 0),
        ({"choice": "right"}, 2),
        ({"choice": "centre"}, 1),
        ({"choice": "index", "index": 2}, 2),
        ({"choice": "left", "min_size": 200}, 1),
    ],
)
def test_the_choice_of_a_face(
    portrait_session: Session, request_of: Request, group: Path, face: dict[str, object], place: int
) -> None:
    assert chosen(portrait_session.prepare(request_of(group, face=face), SCENE)) == place
    own = {"image": str(group), "face": face}
    other = {"choice": "index", "index": 63}
    assert chosen(portrait_session.prepare(request_of(own, face=other), SCENE)) == place, "the photo's own choice rules"


def test_the_face_most_like_another_photo(
    portrait_session: Session, request_of: Request, group: Path, people: list[Path]
) -> None:
    for person in range(3):
        face = {"choice": "like", "like": str(people[2 * person + 1])}
        assert chosen(portrait_session.prepare(request_of(group, face=face), SCENE)) == person


def test_an_index_beyond_the_faces(portrait_session: Session, request_of: Request, group: Path) -> None:
    with pytest.raises(
        FaceError, match=r"references\[0\]: Face 4 was asked for, but 3 faces were found.*choose face 1 to 3"
    ):
        portrait_session.prepare(request_of(group, face={"choice": "index", "index": 3}), SCENE)


def tokens(session: Session, settings: object) -> torch.Tensor:
    prepared = session.prepare(settings, SCENE)  # type: ignore[arg-type]
    return prepared.injection.identities[0].tokens.cond


def test_photos_are_joined_as_asked(portrait_session: Session, request_of: Request, people: list[Path]) -> None:
    session = portrait_session
    one, two = ({"image": str(path)} for path in people[:2])
    first, second = tokens(session, request_of(one)), tokens(session, request_of(two))
    joined = {
        how: tokens(session, request_of(one, two, combine=how))
        for how in ("auto", "average", "normalised_average", "weighted", "best", "concatenate")
    }
    assert torch.equal(joined["auto"], joined["average"]), "as this checkpoint says"
    assert torch.allclose(joined["concatenate"], torch.cat([first, second]), atol=1e-5)
    assert any(torch.allclose(joined["best"], single, atol=1e-5) for single in (first, second))
    for how in ("average", "normalised_average", "weighted"):
        assert joined[how].shape == first.shape
        assert not any(torch.allclose(joined[how], single, atol=1e-3) for single in (first, second))
    assert torch.allclose(joined["weighted"], joined["average"], atol=1e-5), "of equal weights"
    leaning = tokens(session, request_of(one | {"weight": 2.0}, two | {"weight": 0.05}, combine="weighted"))
    assert (leaning - first).norm() < 0.2 * (joined["average"] - first).norm()
    alone = tokens(session, request_of(one, two | {"weight": 0.0}))
    assert torch.equal(alone, first), "a photo of weight 0 is not used"


def test_somebody_else_among_the_photos_is_named(
    portrait_session: Session, request_of: Request, people: list[Path]
) -> None:
    explanation = portrait_session.prepare(request_of(people[0], people[1], people[4]), SCENE).explanation
    photos = explanation.persons[0].photos
    assert all(photo.agreement is not None and -1 <= photo.agreement <= 1 for photo in photos)
    (note,) = explanation.notes
    assert "Photo 3" in note and "looks like somebody else" in note and note in explanation.lines()
    assert not portrait_session.prepare(request_of(people[0], people[1]), SCENE).explanation.notes


def test_photos_without_a_face_are_left_out(
    portrait_session: Session, request_of: Request, portrait: Path, faceless: Path
) -> None:
    settings = request_of(faceless, portrait, no_face="continue")
    prepared = portrait_session.prepare(settings, SCENE)
    assert torch.equal(prepared.injection.identities[0].tokens.cond, tokens(portrait_session, request_of(portrait)))
    assert len(prepared.explanation.persons[0].photos) == 1
    assert any("Photo 1 was left out: No face" in line for line in prepared.explanation.lines())


def test_without_any_face_the_picture_is_made_without(
    portrait_session: Session, request_of: Request, faceless: Path
) -> None:
    prepared = portrait_session.prepare(request_of(faceless, no_face="continue"), SCENE)
    assert not prepared.injection.active and not prepared.explanation.active
    text = " ".join(prepared.explanation.lines())
    assert "Photo 1 was left out" in text and "made without the adapter" in text
    assert reference_vector(portrait_session, request_of(faceless)) is None, "nobody to compare with"


def test_all_weights_zero(portrait_session: Session, request_of: Request, portrait: Path) -> None:
    none = {"image": str(portrait), "weight": 0.0}
    with pytest.raises(FaceError, match="All photos of person 1 have weight 0"):
        portrait_session.prepare(request_of(none), SCENE)
    prepared = portrait_session.prepare(request_of(none, no_face="continue"), SCENE)
    assert not prepared.explanation.active and "No photo is left to use" in prepared.explanation.lines()[-1]


def test_two_people_each_in_their_own_box(
    portrait_session: Session, request_of: Request, people: list[Path], portrait: Path
) -> None:
    boxes = [
        {"kind": "box", "identity": 1, "weight": 0.5, "box": {"x0": 0.5}},
        {"kind": "box", "identity": 0, "box": {"x1": 0.5}},
    ]
    photos = [{"image": str(portrait), "identity": 1}, {"image": str(people[0])}]
    prepared = portrait_session.prepare(request_of(*photos, regions=boxes), SCENE)
    left, right = prepared.injection.identities
    assert (left.weight, right.weight) == (0.8, 0.4)
    assert left.region is not None and right.region is not None
    assert left.region[..., :64].min() == 1 and left.region[..., 64:].max() == 0
    assert torch.equal(left.region.flip(-1), right.region)
    assert torch.equal(right.tokens.cond, tokens(portrait_session, request_of(portrait)))
    assert torch.equal(left.tokens.cond, tokens(portrait_session, request_of(people[0])))
    lines = prepared.explanation.lines()
    assert lines[1].startswith("Person 1") and lines[2].startswith("Person 2") and "50%" in lines[1]


def test_a_person_left_out_does_not_rename_the_other(
    portrait_session: Session, request_of: Request, portrait: Path, faceless: Path
) -> None:
    photos = [{"image": str(faceless)}, {"image": str(portrait), "identity": 1}]
    regions = [{"kind": "full", "identity": 1}]
    prepared = portrait_session.prepare(request_of(*photos, no_face="continue", regions=regions), SCENE)
    assert [person.number for person in prepared.explanation.persons] == [1]
    assert prepared.explanation.lines()[1].startswith("Person 2: ")


def test_warnings_about_a_photo_are_told(
    portrait_session: Session, request_of: Request, portrait: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small.png"
    Image.fromarray(load_picture(portrait)).resize((160, 160)).resize((640, 640)).save(small)
    explanation = portrait_session.prepare(request_of(small), SCENE).explanation
    (photo,) = explanation.persons[0].photos
    assert photo.warnings and photo.quality is not None and photo.quality < 0.88
    assert any("blurred" in line and "photo 1: " in line for line in explanation.lines())
    assert np.isfinite(photo.box or ()).all()
