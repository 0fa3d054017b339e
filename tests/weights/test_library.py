"""Finding adapters by name, and what the user said about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dp_adapter.errors import WeightsError
from dp_adapter.weights.library import ANSWERS, Library


def put(root: Path, name: str, content: bytes = b"x") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_files_of_all_folders_the_first_root_first(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first = put(one, "ipadapter/a.safetensors")
    put(two, "dp_adapter/a.safetensors")
    deep = put(two, "ControlNet/sub/b.BIN")
    put(two, "dp_adapter/notes.txt")
    put(two, "elsewhere/c.safetensors")
    (two / "instantid" / "folder.bin").mkdir(parents=True)
    library = Library([one, two, tmp_path / "absent"], False)
    assert library.files() == {"a.safetensors": first, "b.BIN": deep}


def test_saved_identities_are_no_models(tmp_path: Path) -> None:
    put(tmp_path, "dp_adapter/identities/Anna.safetensors")
    only = put(tmp_path, "dp_adapter/identities.safetensors")
    assert Library([tmp_path], False).resolve("") == only
    assert Library([], False, [tmp_path]).files() == {only.name: only}


def test_resolving(tmp_path: Path) -> None:
    a, b = put(tmp_path, "dp_adapter/a.safetensors"), put(tmp_path, "dp_adapter/b.v2.bin")
    library = Library([tmp_path], False)
    assert library.resolve("a.safetensors") == library.resolve("a") == a
    assert library.resolve("b.v2") == b
    with pytest.raises(WeightsError, match=r"No model was chosen.*a\.safetensors, b\.v2\.bin"):
        library.resolve("")
    with pytest.raises(WeightsError, match=r"Did you mean 'b\.v2\.bin'"):
        library.resolve("b.v3.bin")
    with pytest.raises(WeightsError, match="Put it into"):
        library.resolve("else.safetensors")
    b.unlink()
    assert library.resolve("") == a, "the only one, seen without a restart"
    a.unlink()
    with pytest.raises(WeightsError, match="none found"):
        library.resolve("")
    with pytest.raises(WeightsError, match=r"There is no model 'zzz'.*dp_adapter"):
        library.resolve("zzz")


def test_a_stem_of_two_files_is_no_name(tmp_path: Path) -> None:
    put(tmp_path, "dp_adapter/a.safetensors")
    put(tmp_path, "dp_adapter/a.bin")
    with pytest.raises(WeightsError, match="There is no model 'a'"):
        Library([tmp_path], False).resolve("a")


def test_requests_cannot_leave_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = put(tmp_path, "secret.safetensors")
    put(tmp_path, "models/dp_adapter/a.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "models" / "dp_adapter")
    names = ["../../secret.safetensors", "../../secret", str(outside), "~/secret.safetensors", "./a.safetensors"]
    for name in names:
        with pytest.raises(WeightsError, match="There is no model"):
            Library([tmp_path / "models"], False).resolve(name)
    allowed = Library([tmp_path / "models"], True)
    assert allowed.resolve(names[0]).resolve() == allowed.resolve(names[3]) == outside
    with pytest.raises(WeightsError, match="There is no model"):
        allowed.resolve("..")


@pytest.mark.parametrize("name", ["x" * 900, "~nobody-here/a.safetensors", "a/" * 400])
@pytest.mark.parametrize("paths_allowed", [True, False])
def test_names_that_no_file_can_have(tmp_path: Path, name: str, paths_allowed: bool) -> None:
    with pytest.raises(WeightsError, match="There is no model") as caught:
        Library([tmp_path], paths_allowed).resolve(name)
    assert len(caught.value.problem) < 120


def test_answers_belong_to_the_content(tmp_path: Path) -> None:
    a = put(tmp_path, "dp_adapter/a.bin", b"one")
    b = put(tmp_path, "dp_adapter/b.bin", b"two")
    Library([tmp_path], False).remember(a, "plus")
    library = Library([tmp_path], False)
    assert (library.variant(a), library.variant(b)) == ("plus", None)
    renamed = a.rename(a.with_name("c.bin"))
    assert library.variant(renamed) == "plus"
    library.remember(renamed, "composition")
    library.remember(b, "plus-face")
    assert (library.variant(renamed), library.variant(b)) == ("composition", "plus-face")
    renamed.write_bytes(b"another file")
    assert library.variant(renamed) is None
    assert set(library.files()) == {"b.bin", "c.bin"}, "the answers are no model, and no temporary file is left"


@pytest.mark.parametrize("text", ["{", "[1]", "3", '"x"', b"\xff\xfe".decode("latin-1")])
def test_damaged_answers_are_said(tmp_path: Path, text: str) -> None:
    path = put(tmp_path, "dp_adapter/a.bin")
    put(tmp_path, f"dp_adapter/{ANSWERS}", text.encode("latin-1"))
    library = Library([tmp_path], False)
    with pytest.raises(WeightsError, match=rf"{ANSWERS} is not a JSON object.*Delete it"):
        library.variant(path)
    with pytest.raises(WeightsError, match="Delete it"):
        library.remember(path, "plus")


def test_a_folder_that_cannot_be_written_does_not_stop_the_job(tmp_path: Path) -> None:
    path = put(tmp_path, "ipadapter/a.bin")
    put(tmp_path, "dp_adapter", b"a file where the folder should be")
    library = Library([tmp_path], False)
    library.remember(path, "plus")
    assert library.variant(path) is None


def test_the_answers_are_plain_json(tmp_path: Path) -> None:
    path = put(tmp_path, "dp_adapter/a.bin")
    Library([tmp_path], False).remember(path, "plus")
    (answer,) = json.loads((tmp_path / "dp_adapter" / ANSWERS).read_text(encoding="utf-8")).items()
    assert len(answer[0]) == 64 and answer[1] == "plus"
