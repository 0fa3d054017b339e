"""The faces found in one photo, and which of them is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dp_adapter import naming
from dp_adapter.errors import FaceError
from dp_adapter.webui.host import shared_session
from dp_adapter.webui.panel.messages import explain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

_SIDE, _MARGIN = 112, 0.35


@dataclass(frozen=True)
class FaceThumbnails:
    """What the panel shows of a photo.

    Attributes:
        pictures: crops with captions, from the left.
        words: what was found and what is taken.
        warns: whether they say that something is wrong.
    """

    pictures: tuple[tuple[Image, str], ...]
    words: str
    warns: bool = False


def find_faces(item: dict[str, Any], common: Mapping[str, Any], name: str) -> FaceThumbnails:
    """Looks for faces in a photo of the panel's list.

    Args:
        common: the face choice of all photos, as in a request.
        name: what the photo is called in an error.

    Raises:
        PictureError, SettingsError: the photo is not here any more, or the face choice is not valid.
    """
    from dp_adapter.settings import Settings

    source = str(item.get("image", ""))
    if source.startswith("identity:"):
        return FaceThumbnails((), "A saved identity: its faces were chosen when it was saved.")
    session = shared_session.session()
    detector = session.encoders.yunet
    picture = session.photos.read(source, name)
    faces = session.photos.faces(picture, detector)
    if not faces:
        return FaceThumbnails(
            (), "No face was found in this photo. Use one where the face is larger or turned less.", True
        )
    own = item.get("face")
    settings = Settings.from_dict({"references": [{"image": source, "face": own}], "face": common})
    chosen = -1
    try:
        seen = session.photos.look_at(settings, 0, detector, [])
        assert seen is not None  # it stops where it has none
        facts = seen.describe(None)
        chosen = -1 if facts.chosen is None else facts.chosen
        doubts = f" {'; '.join(facts.warnings).capitalize()}." if facts.warnings else ""
        words, warns = f"{_describe(len(faces), chosen, own is not None)}{doubts}", bool(doubts)
    except FaceError as error:
        words, warns = explain(error), True
    crops = [(_crop(picture, face.box), f"{i + 1} ✓" if i == chosen else str(i + 1)) for i, face in enumerate(faces)]
    return FaceThumbnails(tuple(crops), words, warns)


def _describe(count: int, chosen: int, own: bool) -> str:
    if count == 1:
        return "1 face found."
    why = "as you chose" if own else "by the common face choice"
    return f"{count} faces found; {naming.face(chosen)} is taken, {why}. Click another to choose it."


def _crop(picture: NDArray[np.uint8], box: NDArray[np.float32]) -> Image:
    from PIL import Image

    x1, y1, x2, y2 = (float(side) for side in box)
    half = max(x2 - x1, y2 - y1) * (0.5 + _MARGIN)
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    around = (round(centre_x - half), round(centre_y - half), round(centre_x + half), round(centre_y + half))
    return Image.fromarray(picture).crop(around).resize((_SIDE, _SIDE))
