"""Found faces drawn into the picture, for the eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_quality import Quality
from dp_adapter.identity.pictures.picture_files import Picture

# Okabe and Ito's colours, told apart by the colour-blind.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
SMALLEST = 640  # px of the long side below which the picture is enlarged, or text would be illegible


def annotate(
    picture: Picture,
    faces: Sequence[Face],
    qualities: Sequence[Quality] | None = None,
    parts: Mapping[str, Floats] | None = None,
) -> Picture:
    """A copy [H', W', 3] with boxes, points, number from the left, score and warnings of each face.

    Args:
        qualities: one for each face, in order.
        parts: masks [H, W] by name, tinted each in its own colour.

    The copy is enlarged by a whole factor when its long side is below 640 px.
    """
    import cv2

    factor = -(-SMALLEST // max(picture.shape[:2])) if max(picture.shape[:2]) < SMALLEST else 1
    canvas = _tint(picture, parts or {})
    canvas = np.ascontiguousarray(np.repeat(np.repeat(canvas, factor, 0), factor, 1))
    across = sorted(range(len(faces)), key=lambda i: float(faces[i].centre[0]))
    unit = max(canvas.shape[:2]) / 1000  # lines and letters grow with the picture
    for number, i in enumerate(across):
        colour = COLOURS[number % len(COLOURS)]
        x1, y1, x2, y2 = (int(value) for value in np.round(faces[i].box * factor))
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, max(1, round(2 * unit)))
        for x, y in np.round(faces[i].points * factor).astype(int).tolist():
            cv2.circle(canvas, (x, y), max(2, round(3 * unit)), colour, -1)
        lines = [f"{number}: {faces[i].score:.2f}"]
        if qualities is not None:
            lines[0] += f", quality {qualities[i].score:.2f}"
            lines += [warning.split(":")[0] for warning in qualities[i].warnings()]
        label(canvas, lines, (x1, y1), unit)
    return canvas


def _tint(picture: Picture, parts: Mapping[str, Floats]) -> Picture:
    canvas = picture.astype(np.float32)
    for number, mask in enumerate(parts.values()):
        share = 0.45 * mask[..., None]
        canvas = (1 - share) * canvas + share * np.array(COLOURS[number % len(COLOURS)], np.float32)
    return (canvas + 0.5).clip(0, 255).astype(np.uint8)


def label(canvas: Picture, lines: Sequence[str], corner: tuple[int, int], unit: float) -> None:
    """Text on black above a corner, moved inside the canvas."""
    import cv2

    font, scale, width = cv2.FONT_HERSHEY_SIMPLEX, 0.8 * unit, max(1, round(1.6 * unit))
    pad = max(2, round(5 * unit))
    sizes = [cv2.getTextSize(line, font, scale, width)[0] for line in lines]
    step = max(height for _, height in sizes) + 2 * pad
    wide = max(length for length, _ in sizes) + 2 * pad
    x = max(0, min(corner[0], canvas.shape[1] - wide))
    y = max(0, min(corner[1] - step * len(lines), canvas.shape[0] - step * len(lines)))
    cv2.rectangle(canvas, (x, y), (x + wide, y + step * len(lines)), (0, 0, 0), -1)
    for row, line in enumerate(lines):
        cv2.putText(
            canvas, line, (x + pad, y + step * (row + 1) - pad), font, scale, (255, 255, 255), width, cv2.LINE_AA
        )
