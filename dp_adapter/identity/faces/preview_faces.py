"""Faces and their parts in previews: the pictures that x̂0 decodes to while a picture forms.

Two finders look: the detector for photographs, whose points are the better ones, and a network trained on spoiled
pictures, which still sees a face where the other sees nothing. docs/regions.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from dp_adapter.errors import FaceError
from dp_adapter.identity.faces.detector import Detector
from dp_adapter.identity.faces.face import Face, Floats
from dp_adapter.identity.faces.face_parsing import CROP as PARSED
from dp_adapter.identity.faces.face_parsing import FaceParser
from dp_adapter.identity.faces.landmark_regions import FACE, Oval, frame, oval_mask
from dp_adapter.identity.faces.multiscale_detection import drop_duplicates, iou
from dp_adapter.identity.faces.preview_net import PreviewNetwork
from dp_adapter.identity.pictures.picture_files import Picture

SIDES = (128, 256)  # the network's looks at the whole picture: large faces, small faces
NEAR = 128  # and at each face from near
CROP = 2.4  # side of that crop in sizes of the face
ALONE = 0.65  # score from which the network is believed, mean of its looks from far and from near
DOUBTED = 0.75  # the same where the detector is certain of another face, so that it should see this one too
TOGETHER = 0.2  # the network's score that the detector's finding needs beside it
LOOKS = 8  # faces seen from far that are looked at from near
MAYBE = 0.4  # score from which a face that the network alone sees is shown to the detector from near
CANDIDATES = 2  # how many of these there are at most: each costs four runs of the detector
CERTAIN = 0.8  # the detector's score from which its points are taken and it is believed alone
SAME = 0.35  # IoU of two boxes of one face
OWN = Oval(FACE.x, FACE.y, FACE.across * 1.15, FACE.down * 1.15)  # keeps a neighbour's face out
VAGUE, SHARP = 0.75, 0.9  # agreement of parser and network up to which their fit decides, from which the parser counts
UNSEEN = 0.97  # agreement with the oval from which the parser's mask is the oval


class PreviewFinder:
    """Finds faces, and parses them, in pictures of any stage of a run: a `Detector` and a `FaceParser`.

    Args:
        detector: finds faces in sharp pictures.
        parser: parses them.
        network: finds faces in unsharp ones; the shipped one when None.
        near: parses the head and shoulders alone, in half of the time; hair, clothes and background are 0 beyond.
    """

    name = "preview"

    def __init__(
        self, detector: Detector, parser: FaceParser, network: PreviewNetwork | None = None, near: bool = False
    ) -> None:
        self._detector = detector
        self._parser = parser
        self._network = network or PreviewNetwork()
        self._near = near

    def detect(self, picture: Picture) -> list[Face]:
        """Faces of a picture [H, W, 3], best score first, in px of the picture; empty when there are none.

        Raises:
            CatalogError: a network's file is missing or damaged.
            MissingDependencyError: onnxruntime is not installed.
        """
        seen = self._find_with_network(picture)
        detected = self._detector.detect(picture)
        sharp = any(face.score >= CERTAIN for face in detected)
        kept: list[Face] = []
        for face in detected:
            twin = _match(face, seen)
            if face.score >= CERTAIN or twin is not None:
                kept.append(_merge(face, twin))
        alone = [face for face in seen if not _is_among(face, kept)]
        believed = [face for face in alone if face.score >= (DOUBTED if sharp else ALONE)]
        kept += believed
        if sharp:
            unsure = [face for face in alone[len(believed) :] if face.score >= MAYBE]
            for face in unsure[:CANDIDATES]:
                near = _match(face, _from_crop(picture, face, self._detector.detect))
                kept += [] if near is None else [_merge(near, face)]
        return sorted(kept, key=lambda face: -face.score)

    def parse(self, picture: Picture, face: Face) -> dict[str, Floats]:
        """Masks [H, W] of a face's parts by name, as `SelfieParser.parse` gives them.

        Raises:
            CatalogError, MissingDependencyError: as `detect`.
            FaceError: the face's points coincide.
        """
        parts = _parse_near(self._parser, picture, face) if self._near else self._parser.parse(picture, face)
        oval = oval_mask(frame(face, picture.shape[:2]), FACE)
        seen = self._near_mask(picture, face)
        share = _share_of_network(parts["face"], seen, oval)
        return parts | {"face": np.asarray((1 - share) * parts["face"] + share * seen, np.float32)}

    def _find_with_network(self, picture: Picture) -> list[Face]:
        """What the network sees from far, then each from near; the score is the mean of both looks."""
        far: list[Face] = []
        for side in SIDES:
            far += self._network.look(picture, side, TOGETHER).faces
        near: list[Face] = []
        for face in drop_duplicates(far)[:LOOKS]:
            again = _from_crop(picture, face, lambda crop: self._network.look(crop, NEAR, TOGETHER / 2).faces)
            twin = _match(face, again)
            if twin is not None:
                near.append(replace(twin, score=(twin.score + face.score) / 2))
        return drop_duplicates(near)

    def _near_mask(self, picture: Picture, face: Face) -> Floats:
        """This person's face [H, W] as the network sees it from near."""
        left, top, crop = _crop(picture, face)
        mask = np.zeros(picture.shape[:2], np.float32)
        y1, x1 = max(0, top), max(0, left)
        seen = self._network.look(crop, NEAR, 1.0).mask[y1 - top :, x1 - left :]
        inside = mask[y1 : y1 + seen.shape[0], x1 : x1 + seen.shape[1]]
        inside[:] = seen[: inside.shape[0], : inside.shape[1]]
        return mask * oval_mask(frame(face, picture.shape[:2]), OWN)


def _from_crop(picture: Picture, face: Face, find: Callable[[Picture], list[Face]]) -> list[Face]:
    """What `find` finds around a face, in px of the picture."""
    left, top, crop = _crop(picture, face)
    shift = np.array([left, top], np.float32)
    return [replace(each, box=each.box + np.tile(shift, 2), points=each.points + shift) for each in find(crop)]


def _parse_near(parser: FaceParser, picture: Picture, face: Face) -> dict[str, Floats]:
    """What a parser says of the square that it looks at from near, as masks [H, W] of the whole picture."""
    height, width = picture.shape[:2]
    side = max(8, round(face.size * PARSED))
    left, top = (int(value) for value in np.round(face.centre - side / 2))
    x, y = max(0, left), max(0, top)
    crop = picture[y : min(height, top + side), x : min(width, left + side)]
    if not crop.size:  # a face beyond the edge
        return parser.parse(picture, face)
    shift = np.array([x, y], np.float32)
    parts = parser.parse(crop, replace(face, box=face.box - np.tile(shift, 2), points=face.points - shift))
    after = height - y - crop.shape[0], width - x - crop.shape[1]
    return {name: np.pad(mask, ((y, after[0]), (x, after[1]))) for name, mask in parts.items()}


def _match(face: Face, others: Iterable[Face]) -> Face | None:
    """The best of the others that is the same face."""
    return max((o for o in others if iou(o.box, face.box) > SAME), key=lambda o: o.score, default=None)


def _is_among(face: Face, others: Iterable[Face]) -> bool:
    return any(iou(face.box, other.box) > SAME for other in others)


def _merge(face: Face, twin: Face | None) -> Face:
    """The detector's face; with its score below `CERTAIN`, its points and box pulled towards the network's."""
    if twin is None or face.score >= CERTAIN:
        return face
    return replace(
        face,
        box=(face.box + twin.box) * np.float32(0.5),
        points=(face.points + twin.points) * np.float32(0.5),
        score=max(face.score, twin.score),
    )


def _crop(picture: Picture, face: Face) -> tuple[int, int, Picture]:
    """Left, top and pixels of the square around a face, its edge pixels repeated outside the picture.

    Raises:
        FaceError: the face has no size.
    """
    import cv2

    side = round(face.size * CROP)
    if side < 4:
        raise FaceError(f"A face of {face.size:.1f} px is too small to be parsed", "Give a larger picture.")
    height, width = picture.shape[:2]
    left, top = (int(value) for value in np.round(face.centre - side / 2))
    x1, y1, x2, y2 = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
    part = picture[y1:y2, x1:x2]
    missing = y1 - top, top + side - y2, x1 - left, left + side - x2
    return left, top, np.asarray(cv2.copyMakeBorder(part, *missing, cv2.BORDER_REPLICATE), np.uint8)


def _share_of_network(parsed: Floats, seen: Floats, oval: Floats) -> float:
    """How far the network's outline of a face counts beside the parser's, 0..1; masks [H, W].

    Where the parser has seen no skin and given the oval, the network's counts for more, the better it fits the oval.
    Where it has, the parser's alone counts as they agree, and else the one that fits the oval better. The numbers were
    chosen on 455 spoiled faces in scenes other than the benchmark's.
    """
    fit, parsed_fit = _agreement(seen, oval), _agreement(parsed, oval)
    if parsed_fit > UNSEEN:
        return 0.8 * _ramp(fit, 0.3, 0.8)
    return _ramp(fit - parsed_fit, -0.1, 0.2) * (1 - _ramp(_agreement(parsed, seen), VAGUE, SHARP))


def _ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _agreement(a: Floats, b: Floats) -> float:
    """Soft intersection over union of two masks [H, W]."""
    return float(np.minimum(a, b).sum() / max(float(np.maximum(a, b).sum()), 1e-6))
