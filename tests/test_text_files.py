"""Text in the encodings that users have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dp_adapter.cli.settings import read_settings
from dp_adapter.modes.user_modes import read as read_mode
from dp_adapter.settings import Settings
from dp_adapter.text_files import decode, read_text
from dp_adapter.training.personal.learned_words import read_names

WESTERN = [
    "a portrait of Zoë, smiling – CAPTION",
    "Müller à l’été, créée “très bien”",
    "une fille à la mode, un garçon où",
    "Straße, Mädchen, größer",
    "niño – ¿qué?",
]


@pytest.mark.parametrize("text", [*WESTERN, "a woman", "日本の女性", ""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(f"{text}\r\nb\rc\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == f"{text}\nb\nc\n"


@pytest.mark.parametrize("text", WESTERN)
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be"])
def test_without_a_mark(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


def test_japanese() -> None:
    text = "女性の肖像、カメラを見て笑っている。1girl"
    assert decode(text.encode("cp932")) == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("женщина улыбается", "cp1251"),
        ("женщина улыбается", "koi8-r"),
        ("γυναίκα", "cp1253"),
        ("一个女孩的照片，微笑", "gb18030"),
        ("1girl, 微笑, solo", "gb18030"),
        ("a photo of 猫", "cp932"),
        ("a photo of 日本", "cp932"),
        ("여자 초상화", "euc_kr"),
        ("日本の女性", "utf-16-le"),
        ("女性肖像", "big5"),
    ],
)
def test_what_cannot_be_told_is_not_guessed(text: str, encoding: str) -> None:
    with pytest.raises(ValueError):
        decode(text.encode(encoding))


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"a\0\0\0b", b"\xff\xfea"])
def test_what_is_no_text(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_every_text_file_of_a_user(tmp_path: Path) -> None:
    """As Notepad and PowerShell save them."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"expression": "naïve"}, ensure_ascii=False), encoding="utf-16")
    assert read_settings(file) == Settings(expression="naïve")
    file.write_text(json.dumps({"title": "Café"}, ensure_ascii=False), encoding="utf-8-sig")
    assert read_mode(file).title == "Café"
    file.write_bytes("Zoë\nAnn".encode("cp1252"))
    assert read_names(file) == ["Zoë", "Ann"]
