"""The work on one picture, by itself: read it, find and judge its faces, crop, parse and embed them.

It runs in many processes and on other machines: so arguments and results are plain data, and the networks are opened
here, once a process. They have one thread each, so results do not depend on how many processes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dp_adapter.errors import CatalogError, MissingDependencyError, PictureError, WeightsError
from dp_adapter.identity.crops.person_cut_out import nearer_mask
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import TEMPLATE, Face, Floats
from dp_adapter.identity.faces.face_encoders import SFace
from dp_adapter.identity.faces.face_parsing import BACKGROUND, FACE_SKIN, OTHERS, SelfieParser
from dp_adapter.identity.faces.face_quality import Quality, quality
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.training.data.sample import INSIGHTFACE_PACK, Sample
from dp_adapter.training.prepare.measured_captions import measure_fields
from dp_adapter.training.prepare.picture_result import Drop, PictureResult, Record, Task
from dp_adapter.training.prepare.prepare_options import PrepareOptions

BYSTANDER = 0.25
"""A face smaller than this share of the largest is no second person; its surroundings are background all the same."""
ABOVE, BELOW, ASIDE = 1.3, 2.0, 1.65
"""Edges of head and shoulders from the face's centre, in sizes of the face."""
LEAST_SKIN = 0.1
"""Least share of the face's box that must be face skin or something worn on it."""

Embed = Callable[[Picture, Face], Floats]
Box = tuple[int, int, int, int]


class PictureExaminer:
    """Makes samples of one picture after another, with networks that stay open.

    Args:
        models: folders of models that are not shipped (insightface, transface), in order.

    Raises:
        CatalogError, MissingDependencyError, WeightsError: a network or package is missing or damaged.
    """

    def __init__(self, options: PrepareOptions, models: Sequence[Path]) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._options = options
        self._detector = YuNet(threads=1)
        self._parser = SelfieParser(threads=1)
        sface = SFace(threads=1)
        self._embed: dict[str, Embed] = {"sface": sface.embed}
        self.versions: dict[str, str] = {"sface": sface.version}
        if len({"sface", *options.encoders}) > 1:
            self._add_encoders(models)

    def _add_encoders(self, models: Sequence[Path]) -> None:
        import torch

        from dp_adapter.identity.encoders.encoder_pool import EncoderPool

        torch.set_num_threads(1)
        encoders = EncoderPool(models)
        if "insightface" in self._options.encoders:
            arcface = encoders.arcface(INSIGHTFACE_PACK, normed=True)
            self._embed["insightface"], self.versions["insightface"] = arcface.embed, arcface.version
        if "transface" in self._options.encoders:
            transface = encoders.transface()

            def embed(picture: Picture, face: Face) -> Floats:
                return transface.encode(picture, face, self._parser.parse(picture, face))[0].numpy()

            self._embed["transface"], self.versions["transface"] = embed, transface.version

    def check(self) -> None:
        """Runs every network once, so that a missing or damaged one is reported before the work. Raises as above."""
        grey = np.full((112, 112, 3), 128, np.uint8)
        face = Face(np.array([16, 16, 96, 96], np.float32), TEMPLATE, 1.0)
        self._detector.detect(grey)
        self._parser.labels(grey, face)
        for embed in self._embed.values():
            embed(grey, face)

    def examine(self, task: Task) -> PictureResult:
        """Makes samples of the faces in a file, or says why not.

        Raises:
            PictureError: it cannot be read.
        """
        picture = load_picture(task.data)
        found = self._detector.detect(picture)
        if not found:
            return PictureResult(drops=(Drop("no face"),))
        faces = [face for face in found if face.score >= self._options.min_score]
        if not faces:
            return PictureResult(drops=(Drop("unsure face", f"{found[0].score:.2f}", _round_box(found[0])),))
        largest = max(faces, key=lambda face: face.size)
        faces = [face for face in faces if face.size >= BYSTANDER * largest.size]
        if len(faces) > 1 and self._options.several == "drop":
            return PictureResult(drops=(Drop("several faces", f"{len(faces)} faces", _round_box(largest)),))
        chosen = faces if self._options.several == "each" else [largest]
        chosen.sort(key=lambda face: float(face.centre[0]))
        results = [self._examine_face(task, picture, face, found, number) for number, face in enumerate(chosen)]
        return PictureResult(
            tuple(result for result in results if not isinstance(result, Drop)),
            tuple(result for result in results if isinstance(result, Drop)),
        )

    def _examine_face(
        self, task: Task, picture: Picture, face: Face, found: Sequence[Face], number: int
    ) -> Record | Drop:
        measured = quality(picture, face)
        if drop := _reason_to_drop(measured, self._options):
            return Drop(*drop, _round_box(face))
        whole = (0, 0, picture.shape[1], picture.shape[0])
        box = whole if self._options.crop == "whole" else head_and_shoulders_box(face, whole)
        small, scale = _crop_and_shrink(picture, box, self._options.size)
        face_in_crop = _move_face(face, box, scale)
        labels = self._parser.labels(small, face_in_crop)
        others = [_move_face(other, box, scale) for other in found if other is not face]
        if others:
            labels[~nearer_mask(face_in_crop, others, labels.shape)] = BACKGROUND
        skin = _skin_share(labels, face_in_crop)
        if skin < LEAST_SKIN:
            return Drop("no skin", f"{100 * skin:.0f} % of the face", _round_box(face))
        facts = {
            "content": task.digest,
            "size": [picture.shape[1], picture.shape[0]],
            "faces": len(found),
            "score": round(face.score, 4),
            "quality": {name: round(value, 2) for name, value in vars(measured).items()},
            "suitability": round(measured.score, 4),
            "hash": f"{perceptual_hash(picture, face):016x}",
            "fields": measure_fields(small, labels, face_in_crop, measured),
        }
        x0, y0, x1, y1 = (float(value) for value in face_in_crop.box)
        vectors = {name: np.asarray(embed(picture, face), np.float32) for name, embed in self._embed.items()}
        sample = Sample(
            key=f"{task.digest[:20]}-{number}",
            person="",
            caption="",
            picture=small,
            labels=labels,
            box=(x0, y0, x1, y1),
            points=face_in_crop.points,
            embeddings=vectors,
            facts=facts,
        )
        return sample.to_record(self._options.lossless)


@lru_cache(maxsize=1)
def open_examiner(options: PrepareOptions, models: tuple[str, ...]) -> PictureExaminer:
    """Opens this process's networks once. Raises as `PictureExaminer` does."""
    return PictureExaminer(options, [Path(folder) for folder in models])


def examine(task: Task, options: PrepareOptions, models: tuple[str, ...]) -> PictureResult:
    """The work function: a damaged picture is dropped, a missing network ends the run (raises as `PictureExaminer`)."""
    try:
        return open_examiner(options, models).examine(task)
    except PictureError as error:
        return PictureResult(drops=(Drop("unreadable", error.problem.replace("the given data", "the file")),))
    except (CatalogError, MissingDependencyError, WeightsError):
        raise
    except Exception as error:  # hours of work must not be lost for one odd file; the page counts and shows it
        return PictureResult(drops=(Drop("failed", f"{type(error).__name__}: {error}"),))


def head_and_shoulders_box(face: Face, whole: Box) -> Box:
    """x0, y0, x1, y1 of head and shoulders, cut off where the picture ends."""
    x, y = (float(value) for value in face.centre)
    return (
        max(whole[0], round(x - ASIDE * face.size)),
        max(whole[1], round(y - ABOVE * face.size)),
        min(whole[2], round(x + ASIDE * face.size)),
        min(whole[3], round(y + BELOW * face.size)),
    )


def perceptual_hash(picture: Picture, face: Face) -> int:
    """64 bits of the square of two face sizes around a face: signs of its lowest frequencies about their median.

    pHash (Zauner 2010): 32 x 32 grey, DCT, the 8 x 8 lowest. Of the face's surroundings, so that a picture and a
    part of it, which show the same face, are alike.
    """
    import cv2

    x, y = (float(value) for value in face.centre)
    scale = 32 / (2 * max(face.size, 1.0))
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    if scale < 0.5:  # or the warp would pick single pixels
        wide = max(1, round(1 / scale))
        grey = cv2.blur(grey, (wide, wide))
    warp = np.array([[scale, 0, 16 - scale * x], [0, scale, 16 - scale * y]])
    square = cv2.warpAffine(grey, warp, (32, 32), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    lowest = np.asarray(cv2.dct(square.astype(np.float32)), np.float32)[:8, :8].flatten()
    bits = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _reason_to_drop(measured: Quality, options: PrepareOptions) -> tuple[str, str] | None:
    """The reason to drop a face and its figure; None for a face that is kept."""
    if measured.face_px < options.min_face:
        return "small face", f"{measured.face_px:.0f} px"
    if measured.sharpness < options.min_sharpness:
        return "blurred", f"{measured.sharpness:.0f}"
    if abs(measured.yaw) > options.max_yaw:
        return "turned away", f"{measured.yaw:.0f} degrees"
    if abs(measured.pitch) > options.max_pitch:
        return "tilted", f"{measured.pitch:.0f} degrees"
    return None


def _crop_and_shrink(picture: Picture, box: Box, size: int) -> tuple[Picture, float]:
    """Cuts a box out of a picture and reduces its short side to ``size`` px; also returns the scale (at most 1)."""
    import cv2

    x0, y0, x1, y1 = box
    part = np.ascontiguousarray(picture[y0:y1, x0:x1])
    scale = size / min(part.shape[:2])
    if scale >= 1:
        return part, 1.0
    to = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    return np.asarray(cv2.resize(part, to, interpolation=cv2.INTER_AREA), np.uint8), scale


def _move_face(face: Face, box: Box, scale: float) -> Face:
    corner = np.array(box[:2], np.float32)
    moved = ((face.box.reshape(2, 2) - corner) * scale).astype(np.float32).reshape(4)
    return Face(moved, ((face.points - corner) * scale).astype(np.float32), face.score)


def _skin_share(labels: NDArray[np.uint8], face: Face) -> float:
    """Share of a face's box that the parser takes for face skin or for what is worn on it."""
    x0, y0, x1, y1 = (max(0, round(value)) for value in face.box.tolist())
    inside = labels[y0:y1, x0:x1]
    return float(np.isin(inside, (FACE_SKIN, OTHERS)).mean()) if inside.size else 0.0


def _round_box(face: Face) -> Box:
    x0, y0, x1, y1 = (round(value) for value in face.box.tolist())
    return x0, y0, x1, y1
