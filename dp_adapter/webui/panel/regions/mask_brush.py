"""A canvas to paint a mask on, over a picture. The strokes are drawn in the browser (javascript/dp_adapter.js).

gradio's own tools would do in version 3; version 4's editor keeps a WebGL context busy from the page's start.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from dp_adapter.errors import DPAdapterError, PictureError
from dp_adapter.webui.host import shared_session

if TYPE_CHECKING:
    from PIL.Image import Image

_PREFIX = "data:image/png;base64,"


def draw_canvas(under: Image, mask: str, target: str) -> str:
    """HTML of a canvas over a picture.

    Args:
        mask: text of the mask that is there already, which is painted on; empty for none.
        target: element id of the text box that gets the painting as a PNG data URL after every stroke.
    """
    before = _draw_earlier(mask, under.size)
    return (
        f'<div class="dp-adapter-canvas" data-target="{target}"><div>'
        f'<img src="{data_url(under.convert("RGB"), "JPEG")}" alt="">{before}'
        f'<canvas width="{under.width}" height="{under.height}"></canvas></div>'
        '<p><label>Brush <input type="range" min="4" max="200" value="40"></label>'
        '<label><input type="checkbox"> erase</label><button type="button">Clear</button></p></div>'
    )


def keep_painting(data_url: str) -> str:
    """Keeps what was painted as a mask, white on black, and returns its text for a region; empty for an empty canvas.

    Raises:
        PictureError: the browser sent something else.
    """
    from PIL import Image

    session = shared_session.session()
    try:  # within the limits of every picture; strokes are white, so that light times alpha is alpha
        sent = data_url if data_url.startswith(_PREFIX) else f"{_PREFIX}{data_url}"
        strokes = Image.fromarray(session.photos.read_mask(sent, "painting"))
    except PictureError as error:
        raise PictureError(f"The painted mask could not be read ({error.problem})", "Paint it again.") from error
    mask = strokes.point([255 if level > 127 else 0 for level in range(256)])
    if mask.getbbox() is None:
        return ""
    file = io.BytesIO()
    mask.save(file, "PNG")
    return f"photo:{session.dropped_photos.add(file.getvalue())}"


def _draw_earlier(mask: str, size: tuple[int, int]) -> str:
    """The earlier mask as a transparent picture; the first stroke takes it over into the canvas."""
    from PIL import Image

    if not mask:
        return ""
    try:
        white = Image.fromarray(shared_session.session().photos.read_mask(mask, "Region mask")).resize(size)
    except DPAdapterError:  # said where the regions are checked
        return ""
    strokes = Image.merge("LA", (Image.new("L", size, 255), white))
    return f'<img class="dp-adapter-before" src="{data_url(strokes, "PNG")}" alt="">'


def data_url(picture: Image, form: str) -> str:
    """A picture as text; ``form`` is PNG or JPEG."""
    file = io.BytesIO()
    picture.save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
