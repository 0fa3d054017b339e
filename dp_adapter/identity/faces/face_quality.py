"""How well a face can serve as a reference: size, sharpness, pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dp_adapter.identity.faces.face import Face, Floats, norm_crop
from dp_adapter.identity.pictures.picture_files import Picture

# Mean adult proportions in units of half the distance between the eyes: how far the nose tip stands out,
# and the height from eyes to mouth; the third, where the nose tip lies on that height, is the median of 32 portraits.
NOSE_OUT = 0.7
EYES_TO_MOUTH = 2.3
NOSE_DOWN = 0.58

SMALL_PX = 64.0
GOOD_PX = 112.0
BLURRED = 60.0
SHARP = 250.0
TURNED = 35.0


@dataclass(frozen=True)
class Quality:
    """Measured properties of one face.

    Args:
        face_px: side of the square of the box's area, px.
        sharpness: variance of the Laplacian of the grey 112 px aligned crop.
        yaw, pitch, roll: degrees; > 0 when turned to the picture's right, up, and clockwise.
    """

    face_px: float
    sharpness: float
    yaw: float
    pitch: float
    roll: float

    @property
    def score(self) -> float:
        """0..1: product of three ramps, size (full at 112 px), sharpness (logarithmic, full at 250) and frontality."""
        size = min(1.0, self.face_px / GOOD_PX)
        sharp = min(1.0, float(np.log1p(self.sharpness) / np.log1p(SHARP)))
        away = float(np.hypot(self.yaw, self.pitch))
        return size * sharp * max(0.0, float(np.cos(np.radians(min(away, 90.0)))))

    def warnings(self) -> tuple[str, ...]:
        """What is wrong with it as a reference, in words; empty when nothing is."""
        words: list[str] = []
        if self.face_px < SMALL_PX:
            words.append(f"too small: the face is {self.face_px:.0f} px wide, below {SMALL_PX:.0f} px detail is lost")
        if self.sharpness < BLURRED:
            words.append(f"blurred: sharpness {self.sharpness:.0f}, clear photographs have more than {BLURRED:.0f}")
        if abs(self.yaw) > TURNED:
            words.append(f"turned away: about {abs(self.yaw):.0f}° to the {'right' if self.yaw > 0 else 'left'}")
        if abs(self.pitch) > TURNED:
            words.append(f"tilted: about {abs(self.pitch):.0f}° {'up' if self.pitch > 0 else 'down'}")
        return tuple(words)


def quality(picture: Picture, face: Face) -> Quality:
    """Measure one face of a picture; see `pose` for the angles."""
    import cv2

    grey = cv2.cvtColor(norm_crop(picture, face.points, 112), cv2.COLOR_RGB2GRAY)
    sharpness = float(np.asarray(cv2.Laplacian(grey, cv2.CV_64F)).var())
    yaw, pitch, roll = pose(face.points)
    return Quality(face.size, sharpness, yaw, pitch, roll)


def pose(points: Floats) -> tuple[float, float, float]:
    """Yaw, pitch, roll in degrees from the five points [5, 2], by a rigid head under parallel projection.

    Roll is the angle of the line between the eyes and is taken out first. With a = half the eye distance, the
    nose tip stands 0.7 a out of the plane of eyes and mouth, whose height is 2.3 a. Then, of widths w = a cos(yaw)
    and heights h = 2.3 a cos(pitch), yaw = atan2(dx / 0.7, w) and pitch = atan2(-dy / 0.7, h / 2.3), where dx, dy
    are the nose tip's offsets from where it lies on a frontal face. Good to about 10 degrees up to 50.
    """
    across = points[1] - points[0]
    roll = float(np.arctan2(across[1], across[0]))
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    left_eye, right_eye, nose, left_mouth, right_mouth = points.astype(np.float64) @ np.transpose(turn)
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    offset = nose - (eyes + NOSE_DOWN * (mouth - eyes))
    width, height = (right_eye[0] - left_eye[0]) / 2, mouth[1] - eyes[1]
    yaw = np.arctan2(offset[0] / NOSE_OUT, max(width, 1e-6))
    pitch = np.arctan2(-offset[1] / NOSE_OUT, max(height / EYES_TO_MOUTH, 1e-6))
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))
