"""facexlib's parsers: which is chosen, what its classes become, and that nothing unsafe is loaded."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dp_adapter.errors import CatalogError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_parsing import PARTS, SelfieParser
from dp_adapter.identity.faces.facexlib_parsing import LAYOUTS, FacexlibParser, find_parser
from dp_adapter.identity.pictures.picture_files import Picture

torch = pytest.importorskip("torch")

TINY = """
import torch

class {name}(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.out = torch.nn.Conv2d(3, 19, 1)

    def forward(self, x):
        return self.out(x), x
"""
EXPECTED = {  # CelebAMask-HQ's names for what each part is made of
    "parsing_bisenet.pth": {
        "face": [1, 2, 3, 4, 5, 6, 10, 11, 12, 13], "brows": [2, 3], "eyes": [4, 5], "glasses": [6], "ears": [7, 8, 9],
        "nose": [10], "mouth": [11, 12, 13], "neck": [14], "clothes": [15, 16, 18], "hair": [17], "background": [0],
    },
    "parsing_parsenet.pth": {
        "face": [1, 2, 3, 4, 5, 6, 7, 10, 11, 12], "nose": [2], "glasses": [3], "eyes": [4, 5], "brows": [6, 7],
        "ears": [8, 9, 15], "mouth": [10, 11, 12], "hair": [13], "clothes": [14, 16, 18], "neck": [17],
        "background": [0],
    },
}  # fmt: skip
FACE = Face(
    np.array([40, 40, 110, 130], np.float32),
    np.array([[60, 75], [92, 75], [76, 95], [63, 110], [89, 110]], np.float32),
    1.0,
)
GREY = np.full((160, 160, 3), 128, np.uint8)


@pytest.fixture
def facexlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of facexlib's shape with networks of one 1x1 convolution."""
    package = tmp_path / "site" / "facexlib"
    (package / "parsing").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "parsing" / "__init__.py").touch()
    for name in ("BiSeNet", "ParseNet"):
        (package / "parsing" / f"{name.lower()}.py").write_text(TINY.format(name=name))
    monkeypatch.syspath_prepend(str(package.parent))
    for name in [name for name in sys.modules if name.split(".")[0] == "facexlib"]:
        monkeypatch.delitem(sys.modules, name)
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "facexlib"]:
        del sys.modules[name]


def save(path: Path, label: int = 1) -> Path:
    """Weights that call every pixel `label`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bias = torch.zeros(19)
    bias[label] = 30.0
    torch.save({"out.weight": torch.zeros(19, 3, 1, 1), "out.bias": bias}, path)
    return path


@pytest.mark.parametrize("file", LAYOUTS)
def test_each_class_becomes_its_parts(facexlib: Path, tmp_path: Path, file: str) -> None:
    for label in range(19):
        parts = FacexlibParser(save(tmp_path / file, label)).parse(GREY, FACE)
        assert tuple(parts) == PARTS
        for part, mask in parts.items():
            assert mask.shape == (160, 160) and mask.dtype == np.float32 and 0 <= mask.min() <= mask.max() <= 1
            if part in EXPECTED[file]:
                at = mask[75, 60] if part == "eyes" else mask[95, 76]
                behind = part == "eyes" and label in EXPECTED[file]["glasses"]
                assert (at > 0.99) == (label in EXPECTED[file][part] or behind), (label, part)


def test_a_neighbours_face_stays_out_and_the_rest_is_the_shipped_parsers(
    facexlib: Path, tmp_path: Path, astronaut: Picture, yunet: YuNet
) -> None:
    face = yunet.detect(astronaut)[0]
    parts = FacexlibParser(save(tmp_path / "parsing_bisenet.pth")).parse(astronaut, face)
    plain = SelfieParser().parse(astronaut, face)
    assert parts["face"].sum() < 2 * plain["face"].sum(), "though the network calls all of its crop skin"
    for name in ("clothes", "background", "hair", "skin"):
        assert np.array_equal(parts[name][450:], plain[name][450:]), name
    assert parts["clothes"][450:].max() > 0.9


def test_which_parser_is_chosen(facexlib: Path, tmp_path: Path) -> None:
    roots = [tmp_path / "models", tmp_path / "other"]
    assert find_parser(roots).name == "selfie-multiclass"
    save(facexlib / "weights" / "parsing_parsenet.pth")
    assert find_parser(roots).name == "facexlib-parsenet"
    for folder in ("GFPGAN", "facexlib", "dp_adapter"):
        path = save(tmp_path / "other" / folder / "parsing_bisenet.pth")
        assert find_parser(roots).name == "facexlib-bisenet", "BiSeNet first, wherever it is"
        assert EncoderPool(roots).parser.name == "facexlib-bisenet"
        path.unlink()


@pytest.mark.parametrize("absent", ["package", "dependency", "operator"])
def test_weights_without_a_working_package(facexlib: Path, tmp_path: Path, absent: str) -> None:
    save(tmp_path / "facexlib" / "parsing_bisenet.pth")
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (facexlib / "__init__.py").write_text(broken if absent == "operator" else "import torchvision_that_is_not_there")
    if absent == "package":
        facexlib.rename(facexlib.with_name("another"))
    assert find_parser([tmp_path]).name == "selfie-multiclass"


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a weight file ran",)


def test_damaged_foreign_and_harmful_weights_are_said(
    facexlib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "parsing_bisenet.pth"
    for case in ("damaged", "foreign", "harmful"):
        if case == "foreign":
            torch.save({"other": torch.zeros(2)}, path)
        else:
            path.write_bytes(b"no weights" if case == "damaged" else pickle.dumps({"out.bias": Harmful()}))
        with pytest.raises(CatalogError, match=r"parsing_bisenet\.pth is damaged or no BiSeNet"):
            FacexlibParser(path).parse(GREY, FACE)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("file", LAYOUTS)
def test_the_real_architecture(tmp_path: Path, file: str) -> None:
    """Random weights of the real networks, saved as facexlib's releases are, go in and out."""
    real = pytest.importorskip("facexlib.parsing", reason="needs facexlib, with torchvision and numba")
    layout = LAYOUTS[file]
    torch.save(getattr(real, layout.network)(**layout.options).state_dict(), tmp_path / file)
    parts = FacexlibParser(tmp_path / file).parse(GREY, FACE)
    assert tuple(parts) == PARTS and all(np.isfinite(mask).all() for mask in parts.values())
