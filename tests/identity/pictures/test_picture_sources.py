"""The text by which a request names a picture."""

from __future__ import annotations

import base64
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.picture_sources import read_source

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def encoded() -> str:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("paths_allowed", [True, False])
@pytest.mark.parametrize(
    "header",
    ["", "data:image/png;base64,", "data:;base64,", "DATA:image/PNG;name=a.png;BASE64,", "data:image/x;base64,\n"],
)
def test_base64_and_data_urls(encoded: str, header: str, paths_allowed: bool) -> None:
    assert np.array_equal(read_source(header + encoded, paths_allowed), PICTURE)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", " "])
def test_base64_in_lines(encoded: str, line_end: str) -> None:
    lines = line_end.join(encoded[start : start + 76] for start in range(0, len(encoded), 76)) + line_end
    assert np.array_equal(read_source(lines, False), PICTURE)
    assert np.array_equal(read_source("data:image/png;base64," + lines, False), PICTURE)


@pytest.mark.parametrize("name", ["photo.png", "q" * 70 + "/" + "w" * 70])
def test_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Image.fromarray(PICTURE).save(name, "PNG")
    assert np.array_equal(read_source(name, True), PICTURE), "also where it reads like base64"
    with pytest.raises(PictureError):
        read_source(name, False)


def test_a_path_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(PICTURE).save(tmp_path / "me.png")
    assert np.array_equal(read_source("~/me.png", True), PICTURE)


@pytest.mark.parametrize("paths_allowed", [True, False])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://example.org/a.png", "never fetched"),
        ("https://example.org/a.png", "never fetched"),
        ("file:///etc/hostname", "never fetched"),
        ("data:image/png;base64," + "A" * 99 + "!", "cannot be decoded"),
        ("data:image/png;base64," + "é" * 99, "cannot be decoded"),
        ("data:image/png;base64," + "A" * 101, "cannot be decoded"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64," + "A" * 100, "not a picture"),
        ("data:image/svg+xml,<svg/>", "no data URL of a picture"),
        ("A" * 100, "not a picture"),
    ],
)
def test_what_is_no_picture_is_said(text: str, words: str, paths_allowed: bool) -> None:
    with pytest.raises(PictureError, match=words):
        read_source(text, paths_allowed)


@pytest.mark.parametrize(
    "text", ["a.png", "/etc/hostname", "../a.png", "~/a.png", "~nobody-here/a.png", "C:\\a.png", ""]
)
def test_paths_are_refused_in_requests(text: str) -> None:
    with pytest.raises(PictureError, match="base64 or a data URL"):
        read_source(text, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("absent.png", "There is no file 'absent.png'"),
        ("~nobody-here/a.png", "cannot be followed"),
        (os.fspath(Path(__file__).parent), "cannot be read"),
        (__file__, "not a picture"),
        ("x" * 300 + ".png", "cannot be read"),
    ],
)
def test_paths_that_lead_nowhere(text: str, words: str) -> None:
    with pytest.raises(PictureError, match=words):
        read_source(text, True)


@pytest.mark.parametrize("text", ["A-_" * 50_000, "data:image/png," + "x" * 90_000, "A" * 90_000 + "!"])
@pytest.mark.parametrize("paths_allowed", [True, False])
def test_messages_stay_short(text: str, paths_allowed: bool) -> None:
    with pytest.raises(PictureError) as caught:
        read_source(text, paths_allowed)
    assert len(str(caught.value)) < 300


def test_many_spaces_take_no_quadratic_time() -> None:
    started = time.process_time()
    with pytest.raises(PictureError):
        read_source("A" * 64 + " " * 300_000 + "!", False)
    assert time.process_time() - started < 1, "a quadratic search takes minutes"
