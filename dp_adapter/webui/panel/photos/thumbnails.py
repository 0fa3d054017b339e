"""Small pictures of what a photo's text stands for: a dropped photo, a saved identity, or nothing any more."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from dp_adapter import naming
from dp_adapter.errors import DPAdapterError
from dp_adapter.settings.messages import tidy
from dp_adapter.webui.host import shared_session

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 192
_GREY = (128, 128, 128)


def make_thumbnail(source: str) -> Image:
    """At most ``SIDE`` px; a grey square for what is not here any more."""
    from PIL import Image

    try:
        picture = _open(source)
    except DPAdapterError:
        return Image.new("RGB", (SIDE, SIDE), _GREY)
    picture.thumbnail((SIDE, SIDE))
    return picture


def make_gallery(items: list[dict[str, Any]]) -> list[tuple[Image, str]]:
    """Thumbnails with captions of photos."""
    return [
        (make_thumbnail(str(item.get("image", ""))), write_caption(number, item))
        for number, item in enumerate(items, 1)
    ]


def write_caption(number: int, item: dict[str, Any]) -> str:
    """``1 · weight 0.5 · person 2``, and the name of a saved identity."""
    name = str(item.get("image", "")).partition("identity:")[2]
    parts = [f"{number} {name}".strip(), f"weight {tidy(item.get('weight', 1.0))}"]
    return " · ".join([*parts, naming.person(item.get("identity", 0))])


def _open(source: str) -> Image:
    from PIL import Image

    session = shared_session.session()
    if source.startswith("identity:"):
        data = session.identities.header(source.removeprefix("identity:")).thumbnail
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"  # of a file that anybody may have made
    return Image.fromarray(session.photos.read(source, "Photo"))
