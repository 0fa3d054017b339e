"""The people of the demo: their photos, what is found in them, and a photo made to look old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dp_adapter.demo.shots import PersonPhoto
from dp_adapter.identity.faces.face import Face, choose
from dp_adapter.identity.faces.face_quality import quality
from dp_adapter.identity.pictures.draw_faces import annotate
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.session import Session

PORTRAITS = Path(__file__).parent / "portraits"
_PARTS = ("face", "hair", "clothes", "eyes", "brows", "nose", "mouth")
_AROUND = 3.0  # side of what is shown of a photo, in sizes of the face


@dataclass(frozen=True, eq=False)
class DemoPerson:
    """A person of the demo.

    Attributes:
        photo: the file that requests name; picture: what is in it; face: where in it.
        shown: head and shoulders [s, s, 3]; found: the same with the face and its parts drawn in.
        facts: sentences about the photo.
    """

    name: str
    photo: Path
    picture: Picture
    face: Face
    shown: Picture
    found: Picture
    facts: tuple[str, ...]


def gather_people(session: Session, whos: Sequence[PersonPhoto], photo: Path | None, folder: Path) -> list[DemoPerson]:
    """Loads the people of the demo and writes their photos into a folder.

    Args:
        photo: the user's, who takes the first one's place.

    Raises:
        DPAdapterError: the photo cannot be read, or shows no face.
    """
    people: list[DemoPerson] = []
    for number, who in enumerate(whos):
        if number == 0 and photo is not None:
            people.append(examine_photo(session, "you", load_picture(photo), folder))
        else:
            source = load_astronaut() if who.file is None else PORTRAITS / who.file
            people.append(examine_photo(session, who.name, load_picture(source), folder))
    return people


def load_astronaut() -> Picture:
    """Eileen Collins, 1999; a NASA portrait in the public domain, from scikit-image."""
    from skimage import data

    return np.asarray(data.astronaut(), np.uint8)


def examine_photo(session: Session, name: str, picture: Picture, folder: Path) -> DemoPerson:
    """Finds face and parts in a photo, which is written into a folder.

    Raises:
        FaceError: no face is found.
    """
    from PIL import Image

    faces = session.photos.faces(picture, session.encoders.yunet)
    face = choose(faces)
    measured = quality(picture, face)
    parts = session.encoders.parser.parse(picture, face)
    facts = (
        f"{len(faces)} face(s); the largest is {measured.face_px:.0f} px wide, score {face.score:.2f}.",
        f"Quality {measured.score:.2f}: sharpness {measured.sharpness:.0f}, turned {measured.yaw:+.0f} degrees.",
        *measured.warnings(),
    )
    drawn = annotate(picture, faces, None, {part: parts[part] for part in _PARTS})
    photo = folder / f"{name}.png"
    Image.fromarray(picture).save(photo)
    side = min(_AROUND * face.size, *picture.shape[:2])
    left, top = (
        float(np.clip(centre - side / 2, 0, length - side))
        for centre, length in zip(face.centre, picture.shape[1::-1], strict=True)
    )
    factor = len(drawn) / len(picture)
    found = _crop(drawn, (factor * left, factor * top, factor * (left + side), factor * (top + side)))
    return DemoPerson(name, photo, picture, face, _crop(picture, (left, top, left + side, top + side)), found, facts)


def age_photo(picture: Picture, face: Face) -> Picture:
    """Makes the photo look like an old print: faded sepia with grain and creases, the first one across the cheek."""
    import cv2

    random = np.random.default_rng(0)
    grey = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32)
    grey = 45 + 0.68 * grey + random.normal(0, 7, grey.shape).astype(np.float32)
    aged = np.ascontiguousarray(grey[..., None] / 255 * np.array([255, 232, 190], np.float32))
    height, width = grey.shape
    through = [face.centre + 0.28 * face.size, *(random.uniform(0, 1, (4, 2)) * [width, height])]
    for x, y in through:
        along = random.uniform(0, np.pi)
        reach = np.array([np.cos(along), np.sin(along)]) * 0.4 * width
        ends = [(round(float(x + sign * reach[0])), round(float(y + sign * reach[1]))) for sign in (-1, 1)]
        cv2.line(aged, ends[0], ends[1], (246.0, 240.0, 226.0), max(1, width // 200), cv2.LINE_AA)
    return aged.clip(0, 255).astype(np.uint8)


def _crop(picture: Picture, box: tuple[float, float, float, float]) -> Picture:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.LANCZOS, box), np.uint8)
