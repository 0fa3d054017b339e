"""The demo from photo to page."""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp_adapter.demo import __main__ as demo
from dp_adapter.demo import page
from dp_adapter.errors import PictureError


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
def written(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the fewest steps; the base is there already, as on a second run."""
    pytest.importorskip("skimage")
    pytest.importorskip("jinja2")
    out = tmp_path_factory.mktemp("demo")
    shutil.copytree(tiny_folder, out / "base")
    return demo.make(None, out, 'a <b>garden</b> & "more"', steps=3)


def test_the_page_needs_nothing_else(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    links = Links()
    links.feed(html)
    assert written.name == "index.html" and len(links.addresses) > 15
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
    assert "The base model of this page is untrained." in words
    for arm in ("base model", "plain add", "DP-Adapter"):
        assert len(re.findall(rf"<td>{arm}</td>", html)) == 2
    assert "a &lt;b&gt;garden&lt;/b&gt; &amp;" in html
    assert "face 0 of the init picture" in words and "acts in a box" in words
    assert "nan" not in re.sub(r"base64,[^\"]+", "", html).lower().split()


def test_the_adapter_acts_in_the_region(written: Path) -> None:
    """In each table the arm in the region changes less outside the face than the arm in the whole picture."""
    rows = re.findall(r"<td>(plain add|DP-Adapter)</td><td>([\d.e+-]+)</td><td>([\d.e+-]+)</td>", written.read_text())
    assert [name for name, *_ in rows] == ["plain add", "DP-Adapter"] * 2
    for (_, plain_out, plain_in), (_, ours_out, ours_in) in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < float(ours_out) < float(plain_out)
        assert float(ours_out) / float(ours_in) < float(plain_out) / float(plain_in)


def test_the_photo_is_kept_beside_the_page(written: Path) -> None:
    with Image.open(written.parent / "reference.png") as picture:
        assert picture.size == (512, 512)


def test_photos_that_cannot_be_used(
    tiny_folder: Path,
    faceless: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "base")
    with pytest.raises(PictureError, match=r"There is no file"):
        demo.make(tmp_path / "absent.png", tmp_path, "a", steps=3)
    monkeypatch.setattr(sys, "argv", ["demo", "--photo", str(faceless), "--out", str(tmp_path)])
    assert demo.main() == 1
    assert capsys.readouterr().err.startswith("demo: No face was found")
    assert not (tmp_path / "index.html").exists()


def test_colours_and_overlay() -> None:
    def opened(url: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as picture:
            return np.asarray(picture)

    heat = opened(page.heat_url(np.array([[0.0, 5.0, 10.0, 20.0]], np.float32), 10.0))
    assert heat.tolist() == [[[68, 1, 84], [33, 145, 140], [253, 231, 37], [253, 231, 37]]]
    assert opened(page.heat_url(np.zeros((2, 2), np.float32), 0.0)).reshape(-1, 3).tolist() == [[68, 1, 84]] * 4
    assert opened(page.grid_url(np.array([[0.0, 0.5, 1.0]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]
    red = np.zeros((1, 2, 3), np.uint8)
    red[..., 0] = 240
    shown = page.overlay(red, np.array([[1.0, 0.0]], np.float32))
    assert shown[0, 0].tolist() == [240, 0, 0] and shown[0, 1].tolist() == [28, 28, 28]
