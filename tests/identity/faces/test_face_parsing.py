from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from dp_adapter.identity.encoders.shipped_networks import SELFIE, open_network, shipped_path
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.face_parsing import PARTS, SelfieParser
from dp_adapter.identity.pictures.picture_files import Picture
from tests.identity.conftest import ASSETS

CENTRES = {"eyes": [0, 1], "nose": [2], "mouth": [3, 4]}


@pytest.fixture(scope="module")
def parser() -> SelfieParser:
    return SelfieParser()


def test_parts_of_a_portrait(astronaut: Picture, yunet: YuNet, parser: SelfieParser) -> None:
    face = yunet.detect(astronaut)[0]
    parts = parser.parse(astronaut, face)
    assert tuple(parts) == PARTS
    for name, mask in parts.items():
        assert mask.shape == (512, 512) and mask.dtype == np.float32, name
        assert mask.min() == 0 and mask.max() <= 1 and (mask.max() > 0.9) == (name != "glasses"), name
    for name, points in CENTRES.items():
        for x, y in face.points[points].round().astype(int).tolist():
            assert parts[name][y, x] > 0.5 and parts["face"][y, x] > 0.9, name
    x1, y1, x2, y2 = face.box.astype(int).tolist()
    inside = parts["face"][y1 - 20 : y2 + 20, x1 - 20 : x2 + 20].sum()
    assert inside > 0.999 * parts["face"].sum()
    assert parts["face"].sum() > 0.5 * (x2 - x1) * (y2 - y1)
    assert parts["hair"][60, 225] > 0.9 and parts["clothes"][400, 200] > 0.9 and parts["background"][60, 420] > 0.9
    brows_y = np.average(np.arange(512), weights=parts["brows"].sum(1))
    assert face.points[:2, 1].mean() - 0.35 * face.size < brows_y < face.points[:2, 1].mean()


def test_a_small_face_is_parsed_as_well_as_a_large_one(astronaut: Picture, yunet: YuNet, parser: SelfieParser) -> None:
    face = yunet.detect(astronaut)[0]
    scene = np.full((1400, 1400, 3), 60, np.uint8)
    scene[800:1312, 100:612] = astronaut
    from dataclasses import replace

    shift = np.array([100, 800], np.float32)
    moved = replace(face, box=face.box + np.tile(shift, 2), points=face.points + shift)
    alone, within = parser.parse(astronaut, face), parser.parse(scene, moved)
    for name in ("face", "hair", "neck"):
        a, b = alone[name] > 0.5, within[name][800:1312, 100:612] > 0.5
        assert (a & b).sum() / (a | b).sum() > 0.85, name


def test_each_face_is_its_own(portraits: list[Picture], yunet: YuNet, parser: SelfieParser) -> None:
    import cv2

    pair = np.hstack([cv2.resize(portrait, (200, 250)) for portrait in portraits[1:6:4]]).astype(np.uint8)
    left, right = sorted(yunet.detect(pair), key=lambda face: float(face.centre[0]))
    masks = [parser.parse(pair, face)["face"] for face in (left, right)]
    assert masks[0][:, 200:].sum() < 0.01 * masks[0].sum()
    assert masks[1][:, :200].sum() < 0.01 * masks[1].sum()


def test_a_face_the_network_cannot_see_gets_the_oval(astronaut: Picture, yunet: YuNet, parser: SelfieParser) -> None:
    face = yunet.detect(astronaut)[0]
    mask = parser.parse(np.full((512, 512, 3), 30, np.uint8), face)["face"]
    assert mask[round(float(face.points[2, 1])), round(float(face.points[2, 0]))] == 1
    assert 0.4 < mask.sum() / face.size**2 < 1.5


def test_half_precision_agrees_with_the_original(portraits: list[Picture]) -> None:
    file = ASSETS / "selfie_multiclass" / "selfie_multiclass_256x256.onnx"
    if not file.is_file():
        pytest.skip(f"needs the float32 network in {ASSETS}")
    import cv2

    mine, reference = open_network(shipped_path(SELFIE)), onnxruntime.InferenceSession(str(file))

    def labels(network: onnxruntime.InferenceSession) -> Floats:
        stack = [cv2.resize(portrait, (256, 256)).astype(np.float32)[None] / 255 for portrait in portraits[::4]]
        return np.stack([np.asarray(network.run(None, {"input_29": image})[0]).argmax(-1) for image in stack])

    a, b = labels(mine), labels(reference)
    for number in range(6):
        shared, either = ((a == number) & (b == number)).sum(), ((a == number) | (b == number)).sum()
        assert shared >= 0.99 * either, number


def test_glasses_are_their_frames_and_what_these_enclose(
    portraits: list[Picture], yunet: YuNet, parser: SelfieParser
) -> None:
    for number, wears in ((14, True), (24, True), (30, True), (0, False), (9, False), (18, False)):
        face = yunet.detect(portraits[number])[0]
        parts = parser.parse(portraits[number], face)
        if not wears:
            assert not parts["glasses"].any(), number
            continue
        for x, y in face.points[:2].round().astype(int).tolist():
            assert parts["glasses"][y, x] == 1, number
        assert 0.02 < parts["glasses"].sum() / face.size**2 < 0.3
        assert (parts["glasses"] * (1 - parts["face"])).sum() < 0.25 * parts["glasses"].sum()


def test_ears_lie_beside_the_face(portraits: list[Picture], yunet: YuNet, parser: SelfieParser) -> None:
    for number in (10, 11):  # both ears bare
        face = yunet.detect(portraits[number])[0]
        ears = parser.parse(portraits[number], face)["ears"]
        assert 0.01 < ears.sum() / face.size**2 < 0.15
        across = np.arange(ears.shape[1])[None] - face.points[2, 0]
        for side in (across < 0, across > 0):
            assert ears[np.broadcast_to(side, ears.shape)].sum() > 0.15 * ears.sum(), number
        rows, columns = np.nonzero(ears > 0.5)
        assert np.abs(columns - face.points[2, 0]).min() > 0.7 * np.ptp(face.points[:2, 0])
        assert face.points[:2, 1].min() - 0.4 * face.size < rows.min() and rows.max() < face.points[3:, 1].max()
