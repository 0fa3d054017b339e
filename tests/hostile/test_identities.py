"""Files of saved identities, changed in every way, and processes that save, rename and are killed at one time."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dp_adapter.errors import DPAdapterError, IdentityError
from dp_adapter.identity.saved import saved_identity_file
from dp_adapter.identity.saved.identity_library import FOLDER, IdentityLibrary
from dp_adapter.session import Session
from dp_adapter.webui.api import answers
from tests.hostile.tries import hostile
from tests.identity.saved.test_identity_library import edited, numbers, path_of, photo, someone

ROOT = str(Path(__file__).parents[2])
SAVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dp_adapter.errors import IdentityError
from dp_adapter.identity.saved.identity_library import IdentityLibrary
library = IdentityLibrary([Path(sys.argv[2])])
known = library.load("Known")
from dataclasses import replace
print("ready", flush=True)
sys.stdin.readline()
try:
    if sys.argv[3] == "save":
        library.save(replace(known, name=sys.argv[4]))
    elif sys.argv[3] == "rename":
        library.rename(sys.argv[5], sys.argv[4])
    else:
        while True:
            library.save(replace(known, name="Target"), replace=True)
except IdentityError as error:
    print(error, flush=True)
else:
    print("done", flush=True)
"""


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    run = [sys.executable, "-c", SAVE, ROOT, str(root), *arguments]
    return subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answers_of(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each says, after all were let go at one time."""
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=60)[0].strip() for process in processes]


def names_in(root: Path) -> set[str]:
    return {path.name for path in (root / FOLDER).iterdir()}


# --- processes ------------------------------------------------------------------------------------------------------


def test_of_processes_that_save_one_name_one_is_told_saved(tmp_path: Path) -> None:
    IdentityLibrary([tmp_path]).save(someone("Known"))
    said = answers_of([start(tmp_path, "save", "Target") for _ in range(4)])
    assert said.count("done") == 1, said
    assert said.count("There is already a saved identity 'Target'. Choose another name, or replace it.") == 3, said
    assert names_in(tmp_path) == {"Known.safetensors", "Target.safetensors"}
    assert IdentityLibrary([tmp_path]).load("Target").hashes


def test_names_that_are_one_name_and_renamed_ones(tmp_path: Path) -> None:
    library = IdentityLibrary([tmp_path])
    for name in ("Known", "First", "Second"):
        library.save(someone(name))
    how = [("save", "Target"), ("save", "TARGET"), ("rename", "Target", "First"), ("rename", "Target", "Second")]
    said = answers_of([start(tmp_path, *one) for one in how])
    assert said.count("done") <= 1, said
    assert all(words == "done" or "already a saved identity" in words for words in said), said
    kept = {name for name in ("First", "Second") if name in library.names()}
    renamed = [one for one, words in zip(how, said, strict=True) if one[0] == "rename" and words == "done"]
    assert len(kept) + len(renamed) == 2, "an identity is lost"


@pytest.mark.skipif(sys.platform == "win32", reason="there left files go after a day")
def test_savers_that_are_killed_leave_a_whole_file_and_nothing_else(tmp_path: Path) -> None:
    library, chance = IdentityLibrary([tmp_path]), random.Random(0)
    library.save(someone("Known"))
    digest = library.save(replace(library.load("Known"), name="Target")).digest
    for _ in range(6):
        saver = start(tmp_path, "for ever")
        assert saver.stdout is not None and saver.stdout.readline() == "ready\n" and saver.stdin is not None
        saver.stdin.write("\n")
        saver.stdin.flush()
        time.sleep(0.01 + chance.random() / 20)
        saver.send_signal(signal.SIGKILL)
        saver.communicate()
        assert IdentityLibrary([tmp_path]).load("Target").digest == digest
        assert set(library.names()) == {"Known", "Target"}
    library.save(someone("Last"))
    assert names_in(tmp_path) == {f"{name}.safetensors" for name in ("Known", "Target", "Last")}


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Session]:
    """A models folder with a good identity, and a session on it."""
    root = tmp_path_factory.mktemp("models")
    IdentityLibrary([root]).save(someone("Good"))
    return root, Session([root], paths_allowed=False)


def require_list_and_embeddings(session: Session, name: str) -> None:
    """The list is there, with the good one and words on the other; the other gives finite vectors, or words."""
    listed = {one["name"]: one for one in answers.list_identities(session)["identities"]}
    json.dumps(list(listed.values()), ensure_ascii=False, allow_nan=False).encode()
    assert "created" in listed["Good"] and ("problem" in listed[name] or "created" in listed[name])
    if "problem" in listed[name]:
        assert f"{name}.safetensors" in listed[name]["problem"] and len(listed[name]["problem"]) < 400
    try:
        found = answers.embed_faces(session, {"references": [{"image": f"identity:{name}"}]})
    except DPAdapterError as error:
        str(error).encode()
    else:
        json.dumps(found, allow_nan=False)
        assert np.linalg.norm(found["persons"][0]["vector"]) == pytest.approx(1, abs=1e-4)


SHAPES = [(), (0,), (1,), (127,), (128,), (512,), (5, 40), (5, 41), (1, 128), (5, 5, 40), (2, 2, 2, 2)]
NUMBERS = [0.0, 1.0, -1.0, 1e-30, 1e8, 3e38, float("nan"), float("inf")]
KINDS = ["float32", "float16", "float64", "int8", "int64", "bool", "uint8"]
TEXTS = ["", "x", "\ud800", "\0", "<b>", "{}", "[]", "null", "NaN", "-1", "1e999", "9" * 5000, "[" * 50_000, "é" * 300]
FACTS: list[Any] = [
    None, True, -1, 0, 1, 1e-300, 1e300, float("nan"), 10**400, "", "x", "\ud800", [], [0] * 4, {}, {"yunet": {}},
]  # fmt: skip


@given(data=st.data())
@hostile
def test_a_file_that_says_anything_in_the_right_form(data: st.DataObject, shelf: tuple[Path, Session]) -> None:
    root, session = shelf

    def change(metadata: dict[str, str], tensors: dict[str, NDArray[Any]]) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            way = data.draw(st.sampled_from(["tensor", "number", "key", "drop", "text", "fact", "swap"]))
            key = data.draw(st.sampled_from(sorted(tensors)))
            if way == "tensor":
                shape, kind = data.draw(st.sampled_from(SHAPES)), data.draw(st.sampled_from(KINDS))
                with np.errstate(all="ignore"):
                    tensors[key] = np.full(shape, data.draw(st.sampled_from(NUMBERS))).astype(kind)
            elif way == "number" and tensors[key].dtype == np.float32 and tensors[key].size:
                tensors[key] = tensors[key].copy()
                tensors[key].flat[data.draw(st.integers(0, tensors[key].size - 1))] = data.draw(
                    st.sampled_from(NUMBERS)
                )
            elif way == "key":
                names = ["photos.0.yunet.x", "photos.²", "photos.0", "photos.-1.a.b", "zeros.", "x", "é" * 99]
                tensors[data.draw(st.sampled_from(names))] = tensors[key]
            elif way == "drop" and len(tensors) > 1:
                del tensors[key]
            elif way == "swap":
                other = data.draw(st.sampled_from(sorted(tensors)))
                tensors[key], tensors[other] = tensors[other], tensors[key]
            elif way == "text":
                metadata[data.draw(st.sampled_from(sorted(metadata)))] = data.draw(
                    st.sampled_from([text for text in TEXTS if text != "\ud800"])
                )
            elif way == "fact":
                name = data.draw(st.sampled_from(["photos", "encoders"]))
                try:
                    told = json.loads(metadata[name])
                    at = told[0] if name == "photos" else told
                    if name == "photos" and data.draw(st.booleans()):
                        at = at["views"]["yunet"]
                        at = at["quality"] if data.draw(st.booleans()) else at
                    at[data.draw(st.sampled_from(sorted(at)))] = data.draw(st.sampled_from(FACTS))
                    metadata[name] = json.dumps(told)
                except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
                    pass  # it was changed before

    IdentityLibrary([root]).save(someone("Bad"), replace=True)
    edited(path_of(root, "Bad"), change)
    require_list_and_embeddings(session, "Bad")


@given(data=st.data())
@hostile
def test_a_file_of_any_bytes(data: st.DataObject, shelf: tuple[Path, Session]) -> None:
    root, session = shelf
    IdentityLibrary([root]).save(someone("Bad"), replace=True)
    path = path_of(root, "Bad")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # most of what can be told wrongly stands in the first thousands of bytes
        place = data.draw(st.integers(0, min(len(content), data.draw(st.sampled_from([8, 4000, len(content)]))) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([0, 7, 8, 100, len(content), len(content)]))])
    require_list_and_embeddings(session, "Bad")


def test_a_description_of_many_bytes_is_not_read(shelf: tuple[Path, Session]) -> None:
    root, session = shelf
    path_of(root, "Bad").write_bytes((300 * 2**20).to_bytes(8, "little") + b"{" + bytes(9 * 2**20))
    with pytest.raises(IdentityError, match="its description would have"):
        IdentityLibrary([root]).header("Bad")
    require_list_and_embeddings(session, "Bad")


def test_vectors_of_later_versions_are_left_out(tmp_path: Path) -> None:
    def add(metadata: dict[str, str], tensors: dict[str, NDArray[Any]]) -> None:
        tensors["photos.0.yunet.later/1x2/any"] = np.ones((1, 2, 3, 4), np.int8)

    library = IdentityLibrary([tmp_path])
    library.save(someone())
    before = library.load("Anna").photos[0].views["yunet"].vectors.keys()
    edited(path_of(tmp_path, "Anna"), add)
    assert library.load("Anna").photos[0].views["yunet"].vectors.keys() == before


EVERY: dict[str, tuple[int, ...]] = {
    "clip/40x2x24/photo/embeds": (24,), "clip/40x2x24/photo/hidden": (5, 40), "clip/40x2x24/person/hidden": (5, 40),
    "clip/40x2x24/parsed/hidden": (5, 40), "clip/40x2x24/parts/hidden": (5, 5, 40),
    "transface/48x2x16/patches": (16, 48), "eva/32x21x24/face/pooled": (24,), "eva/32x21x24/face/hidden": (5, 10, 32),
    "photomaker/0123456789abcdef/ids": (2, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_every_encoders_vectors_have_their_shape(name: str, tmp_path: Path) -> None:
    library, one = IdentityLibrary([tmp_path]), photo("a")

    def save(vector: NDArray[np.float32]) -> None:
        view = replace(one.views["yunet"], vectors={**one.views["yunet"].vectors, name: vector})
        library.save(
            replace(someone(digests="a"), photos=(replace(one, views={**one.views, "yunet": view}),)), replace=True
        )

    save(numbers(*EVERY[name]))
    assert library.load("Anna").photos[0].views["yunet"].vectors[name].shape == EVERY[name]
    wrong = [numbers(*EVERY[name], 1), numbers(*EVERY[name][:-1], 0), numbers(*EVERY[name]) * np.float32(1e20)]
    wrong += [numbers(*EVERY[name][:-1], EVERY[name][-1] + 1)] if not name.startswith("photomaker") else []
    for vector in wrong:
        with pytest.raises(IdentityError, match=rf"Anna.*(damaged|saved).*its vector {name}"):
            save(vector)
    assert library.load("Anna").photos[0].views["yunet"].vectors[name].shape == EVERY[name]


def test_reading_takes_the_files_size(tmp_path: Path) -> None:
    """The largest vectors lie in memory as in the file, in half precision."""
    name = "eva/32x21x24/face/hidden"
    half: dict[str, NDArray[Any]] = {name: np.ones((5, 10, 32), np.float16)}
    save_file(half, str(tmp_path / "x"))
    view = photo("a").views["yunet"]
    assert replace(view, vectors=half).find("eva/", "/face/hidden", 32)[1].dtype == np.float32  # type: ignore[index]
    library = IdentityLibrary([tmp_path])
    one = replace(photo("a"), views={"yunet": replace(view, vectors={**view.vectors, name: numbers(5, 10, 32)})})
    library.save(replace(someone(digests="a"), photos=(one,)))
    assert library.load("Anna").photos[0].views["yunet"].vectors[name].dtype == np.float16
    assert saved_identity_file.MAX_BYTES == 512 * 2**20
