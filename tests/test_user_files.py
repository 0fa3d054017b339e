"""Folders and JSON files as users have them, and who reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dp_adapter import catalog
from dp_adapter.errors import WeightsError
from dp_adapter.identity.encoders import clip_file, eva
from dp_adapter.user_files import is_file, list_folder, read_json
from dp_adapter.weights.library import Library

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that may not be listed; the tests may run as somebody who may do everything."""
    folder, listed = tmp_path / "locked", Path.iterdir
    folder.mkdir()

    def iterdir(path: Path) -> Iterator[Path]:
        if path == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    return folder


def test_a_folder_is_listed_by_name_and_what_cannot_be_is_empty(tmp_path: Path, locked: Path) -> None:
    (tmp_path / "b").write_text("")
    (tmp_path / "a").write_text("")
    assert [path.name for path in list_folder(tmp_path)] == ["a", "b", "locked"]
    assert list_folder(locked) == list_folder(tmp_path / "nowhere") == list_folder(tmp_path / "a") == []


def test_a_locked_folder_keeps_nobody_from_looking_elsewhere(tmp_path: Path, locked: Path) -> None:
    model = catalog.find("selfie-multiclass")
    (tmp_path / model.filename).write_bytes(b"1")
    assert catalog.locate(model, [locked, tmp_path]) == tmp_path / model.filename
    (tmp_path / "clip_vision").mkdir()
    (tmp_path / "clip_vision" / "eva.safetensors").write_bytes(b"1")
    found = list(eva.find_candidates([locked, tmp_path]))
    assert tmp_path / "clip_vision" / "eva.safetensors" in found


@pytest.mark.parametrize(
    ("content", "words"), [(DEEP, "too deep"), (" " * 2_000_000, "larger than"), ("{", "Expecting"), ("\xff", "decode")]
)
def test_json_that_nobody_wrote(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=words):
        read_json(path)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1} and is_file(path) and not is_file(tmp_path)
    with pytest.raises(OSError, match="no file"):
        read_json(tmp_path)


@pytest.mark.parametrize("content", [DEEP, " " * 2_000_000, "[1]", "{"])
def test_answers_that_cannot_be_read_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "dp_adapter").mkdir()
    library = Library([tmp_path], paths_allowed=False)
    library._store().write_text(content)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(WeightsError, match="is not a JSON object"):
        library._answers()  # pyright: ignore[reportPrivateUsage]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_tower_with_a_pipe_as_its_second_part_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"1")
    os.mkfifo(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightsError, match="no CLIP vision tower"):
        clip_file.weight_files(tmp_path)


@pytest.mark.parametrize("content", [DEEP, " " * 2_000_000, "[1]"])
def test_a_towers_configuration_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match="is not a model's configuration"):
        clip_file._vision_config(tmp_path)  # pyright: ignore[reportPrivateUsage]
