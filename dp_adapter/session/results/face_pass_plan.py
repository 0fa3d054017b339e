"""The face pass: each face of a finished picture made anew, enlarged. Whoever samples it is a host's business."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dp_adapter.identity.faces.face import Face
from dp_adapter.modes import ResolvedMode
from dp_adapter.session.scene import Mask, Picture
from dp_adapter.settings import Curve, FacePass, Hires, Region, Report, Settings, Span

_AROUND = 2.2  # side of the square in sides of the face's box
_OVAL = (0.72, 0.80)  # radii of what is pasted whole, in sides of the box; hair and chin lie inside
_FADE = 1.3  # radius at which nothing is pasted, in radii of the oval
_EDGE = 0.08  # width of the fade at the square's own edges


def is_wanted(settings: Settings, mode: ResolvedMode | None) -> bool:
    """Whether faces are to be made anew; ``auto`` also asks the host whether something else does it already.

    Args:
        mode: at work; None where the adapter is off.
    """
    return mode is not None and (settings.face_pass.use == "on" or mode.face_pass)


def request(settings: Settings, mode: ResolvedMode | None, person: int) -> Settings:
    """The request of the pass over one person's face, which fills the picture.

    A mode that wants the pass is about the whole picture, and has no say in it, whoever asked for the pass.
    """
    theirs = tuple(replace(one, identity=0) for one in settings.references if one.identity == person)
    return settings.replace(
        references=theirs,
        regions=(Region(kind="full"),),
        weight=settings.face_pass.weight,
        span=Span(start=0.0),
        curve=Curve(),
        mode="portrait" if mode is not None and mode.mode.face_pass else settings.mode,
        strict_text_region=False,
        hires=Hires(),
        face_pass=FacePass(use="off"),
        report=Report(),
    )


def side(asked: FacePass, native: int, width: int, height: int) -> int:
    """Side in px that a face is enlarged to: as asked for, else what the base draws.

    A picture smaller than that says that its checkpoint draws smaller ones (SDXL Turbo), or that time is short.

    Args:
        native: side in px of the pictures that the base was trained on.
        width, height: of the picture as it was sampled.
    """
    return min(native, max(width, height)) if asked.size is None else asked.size


@dataclass(frozen=True)
class Square:
    """A part of a picture, in px, of a face that lies in it.

    Attributes:
        work: side in px that the part is enlarged to.
    """

    x: int
    y: int
    side: int
    work: int


def square(face: Face, width: int, height: int, size: int) -> Square:
    """The part of a picture to make anew for a face: with room around it, never reduced.

    Args:
        width, height: of the picture.
        size: side in px to enlarge to.
    """
    x0, y0, x1, y1 = face.box.tolist()
    side = max(8, min(round(_AROUND * max(x1 - x0, y1 - y0)), width, height))
    left = min(max(round((x0 + x1 - side) / 2), 0), width - side)
    top = min(max(round((y0 + y1 - side) / 2), 0), height - side)
    return Square(left, top, side, -(-max(size, side) // 8) * 8)


def enlarge_square(picture: Picture, part: Square) -> Picture:
    """The part, [work, work, 3]."""
    return _resized(picture[part.y : part.y + part.side, part.x : part.x + part.side], part.work)


def paste_square(picture: Picture, made: Picture, part: Square, face: Face) -> Picture:
    """The picture with a part made anew, softly and in the colours that were there.

    Args:
        made: [work, work, 3].
    """
    inside = (slice(part.y, part.y + part.side), slice(part.x, part.x + part.side))
    old = picture[inside].astype(np.float32)
    new = _resized(made, part.side).astype(np.float32)
    share = _share(part, face, picture.shape)[..., None]  # [side, side, 1]
    # Going through the VAE shifts colours: what lies around the face says how much, and it had no reason to change.
    around = share < 0.05
    if around.mean() > 0.05:
        new += ((old - new) * around).sum((0, 1)) / around.sum()
    result = picture.copy()
    result[inside] = np.rint(np.clip(old + share * (new - old), 0, 255)).astype(np.uint8)
    return result


def _share(part: Square, face: Face, shape: tuple[int, ...]) -> Mask:
    """[side, side]: 1 on the face, 0 at the edges that are not the picture's own."""
    x0, y0, x1, y1 = face.box.tolist()
    y, x = np.mgrid[0 : part.side, 0 : part.side].astype(np.float32) + 0.5
    across = (x + part.x - (x0 + x1) / 2) / (_OVAL[0] * (x1 - x0))
    down = (y + part.y - (y0 + y1) / 2) / (_OVAL[1] * (y1 - y0))
    share = _smooth((_FADE - np.sqrt(across**2 + down**2)) / (_FADE - 1))
    edge = _EDGE * part.side
    if part.x > 0:
        share = share * _smooth(x / edge)
    if part.y > 0:
        share = share * _smooth(y / edge)
    if part.x + part.side < shape[1]:
        share = share * _smooth((part.side - x) / edge)
    if part.y + part.side < shape[0]:
        share = share * _smooth((part.side - y) / edge)
    return share.astype(np.float32)


def _smooth(values: Mask) -> Mask:
    """0 below 0, 1 above 1, without a corner in between."""
    clipped = values.clip(0, 1)
    return clipped * clipped * (3 - 2 * clipped)


def _resized(picture: Picture, side: int) -> Picture:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), np.uint8)
