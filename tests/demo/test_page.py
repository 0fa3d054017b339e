"""The demo from photo to page, with the tests' untrained base in the place of the trained one."""

from __future__ import annotations

import base64
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp_adapter.demo import __main__ as demo
from dp_adapter.demo import drawing, page
from dp_adapter.demo.people import DemoPerson
from dp_adapter.demo.sections import CaptionedPicture, Comparison, Story
from dp_adapter.demo.shots import EDITS, PEOPLE, EditExample, Programme
from dp_adapter.errors import HostError, PictureError
from dp_adapter.identity.faces.face import Face
from dp_adapter.session.results.best_of import Drift

PROMPT = 'a <b>garden</b> & "more"'
EXPRESSION = EditExample(
    "Expression", "Mouth and eyes.", 0, PROMPT, {"before": {}, "after": {"mode": "expression", "expression": "sad"}}
)
SHORT = Programme(steps=2, people=PEOPLE[:1], prompts=(PROMPT,), edits=(EXPRESSION,), weights=(0.0, 1.0), grid=1)


class Links(HTMLParser):
    """Every address that a browser would follow or load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


@pytest.fixture(scope="module")
def written(tiny_folder: Path, adapter_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage")
    pytest.importorskip("jinja2")
    return demo.make(SHORT, tmp_path_factory.mktemp("demo"), None, tiny_folder, adapter_file)


def test_the_page_needs_nothing_else(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    links = Links()
    links.feed(html)
    assert written.name == "index.html" and len(links.addresses) > 12
    assert not {"script", "link", "iframe", "b"} & set(links.tags), "the prompt is text, not markup"
    assert "http://" not in html and "https://" not in html and "url(" not in html and "@import" not in html
    for address in links.addresses:
        kind, data = address.split(",", 1)
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.mode == "RGB"


def test_the_page_says_what_it_shows(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    for arm in ("base model", "plain add", "DP-Adapter"):
        assert len(re.findall(rf"<td>{arm}</td>", html)) == 1
    assert "a &lt;b&gt;garden&lt;/b&gt; &amp;" in html
    assert "+ sad expression, corners of the mouth turned down" in words and "− smile" in words
    assert "seed 7" in words and "no face found" in words, "an untrained base draws none"
    assert "nan" not in re.sub(r"base64,[^\"]+", "", html).lower().split()


def test_a_sheet_for_each_section(written: Path) -> None:
    sizes = {}
    for name in ("arms", "drift", "modes", "sweep"):
        with Image.open(written.parent / f"{name}.png") as sheet:
            sizes[name] = sheet.size
    assert sizes["arms"][0] == 4 * 200 + 8 and sizes["sweep"][0] == 3 * 200 + 8
    with Image.open(written.parent / "photos" / "astronaut.png") as photo:
        assert photo.size == (512, 512)


def test_what_cannot_be_used_is_said_before_a_picture_is_made(
    faceless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage")
    with pytest.raises(PictureError, match=r"There is no file"):
        demo.make(SHORT, tmp_path, tmp_path / "absent.png")
    with pytest.raises(HostError, match=r"There is no model"):
        demo.make(SHORT, tmp_path, None, tmp_path / "absent.safetensors")
    monkeypatch.setattr(sys, "argv", ["demo", "--photo", str(faceless), "--out", str(tmp_path)])
    assert demo.main() == 1
    assert "demo: No face was found" in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()


def test_colours_and_overlay() -> None:
    shown = drawing.draw_heat(np.array([[0.0, 5.0, 10.0, 20.0]], np.float32), 10.0)
    assert shown.tolist() == [[[68, 1, 84], [33, 145, 140], [253, 231, 37], [253, 231, 37]]]
    assert drawing.draw_heat(np.zeros((2, 2), np.float32), 0.0).reshape(-1, 3).tolist() == [[68, 1, 84]] * 4
    with Image.open(
        io.BytesIO(base64.b64decode(page.gate_url(np.array([[0, 0.5, 1]], np.float32)).split(",")[1]))
    ) as g:
        assert np.asarray(g)[0, :, 0].tolist() == [0, 128, 255]
    red = np.zeros((1, 2, 3), np.uint8)
    red[..., 0] = 240
    shown = drawing.draw_region(red, np.array([[1.0, 0.0]], np.float32))
    assert shown[0, 0].tolist() == [240, 0, 0] and shown[0, 1].tolist() == [28, 28, 28]
    assert drawing.draw_region(red, None) is red


def test_the_means_count_a_missing_face_as_nothing_alike() -> None:
    none = np.zeros((128, 128, 3), np.uint8)
    region = np.zeros((128, 128), np.float32)
    region[32:96, 32:96] = 1
    face = Face(np.zeros(4, np.float32), np.zeros((5, 2), np.float32), 1.0)
    person = DemoPerson("a", Path("a.png"), none, face, none, none, ())

    def one(alike: float | None, outside: float | None) -> Comparison:
        frame = CaptionedPicture(none, alike, "", "", (), region, "")
        return Comparison("p", person, {"DP-Adapter": frame}, {}, {"DP-Adapter": Drift(outside, 0.1)})

    story = Story(SHORT, (person,), (one(0.5, 0.25), one(None, None)), (), None)
    assert story.means() == {"DP-Adapter": (0.25, 0.25)}
    gates = page.gates_by_grid(story.comparisons[0])
    assert next(iter(gates)) == "down, 16×16, p = 1" and gates["middle, 2×2, p = 2"].shape == (2, 2)
    assert gates["down, 16×16, p = 1"].sum() == 64


def test_the_modes_that_are_shown() -> None:
    asked = [fields.get("mode") for edit in EDITS for fields in edit.pictures.values() if "mode" in fields]
    assert set(asked) == {"full_body", "age", "old_photo", "expression"}
