"""Files that the trainer reads, changed in every way: it runs on what they say, or one kind of error tells of them."""

from __future__ import annotations

import copy
import io
import json
import os
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dp_adapter.errors import SettingsError, TrainingError
from dp_adapter.training import run_checkpoint
from dp_adapter.training.config import Config, from_tables, read, to_tables
from dp_adapter.training.damaged_files import MOST_BYTES
from dp_adapter.training.data.shards import Shards
from dp_adapter.training.prepare.picture_result import PictureResult
from dp_adapter.training.prepare.work_log import WorkLog
from dp_adapter.training.run_checkpoint import Progress
from dp_adapter.training.toml_records import kind_of
from tests.hostile.tries import hostile
from tests.training import made

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "training").glob("*.toml"))
VALUES: list[Any] = [
    float("nan"), float("inf"), -float("inf"), -1, -0.5, 0, 2, 0.5, 10**30, 10**400, 1e300, "", "x", "sd15", "a\0b",
    "\ud800", "x" * 10_000, [], [[]], [1], {}, {"x": 1}, True, None,
]  # fmt: skip


# --- configurations -------------------------------------------------------------------------------------------------


def whole(path: Path) -> dict[str, Any]:
    """An example's first stage with all keys, those at their defaults too, as parsed TOML."""
    tables = json.loads(json.dumps(to_tables(read(path))))
    return {**tables, "stage": tables["stage"][:1]}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and index under a value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def with_value(tables: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(tables)
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def numbers_of(config: Config) -> list[float]:
    found: list[float] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                look(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                look(inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(value)

    look(to_tables(config))
    return found


def dotted(path: tuple[Any, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def test_every_value_of_an_example_may_be_anything() -> None:
    tables = whole(EXAMPLES[-1])
    assert to_tables(from_tables(tables))["stage"] == to_tables(read(EXAMPLES[-1]))["stage"][:1]
    for path in places(tables):
        for value in VALUES:
            try:
                config = from_tables(with_value(tables, path, copy.deepcopy(value)))
            except SettingsError as error:
                # at the field, above it, or at one that does not go with it
                assert error.field.split(".")[0].split("[")[0] in {str(path[0]), "edits", "adapter", "base", "stage"}
                assert len(str(error)) < 600
                if value != value or value in (-1, float("inf")):
                    assert error.field == dotted(path) or isinstance(path[-1], int), (path, error)
            else:
                assert all(np.isfinite(number) and number >= 0 for number in numbers_of(config)), (path, value)


@given(data=st.data())
@hostile
def test_any_tables_are_a_run_or_refused(data: st.DataObject) -> None:
    tables = whole(data.draw(st.sampled_from(EXAMPLES)))
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=5,
    )
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(tables))))
        key = data.draw(st.sampled_from([path, (*path[:-1], data.draw(st.text(max_size=9)))]))
        try:
            tables = with_value(tables, key, data.draw(anything))
        except (TypeError, KeyError, IndexError):
            continue  # a key where there is a list by now
    try:
        config = from_tables(tables)
    except SettingsError as error:
        assert error.field
    else:
        assert all(np.isfinite(number) and number >= 0 for number in numbers_of(config))


@given(data=st.data(), change=st.text("stage.0123²=[]{}\"'\n\t einfa-+_#", max_size=40))
@hostile
def test_damaged_toml_and_changes(data: st.DataObject, change: str, tmp_path: Path) -> None:
    text = bytearray(data.draw(st.sampled_from(EXAMPLES)).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "run.toml"
    path.write_bytes(text)
    for changes in ([], [change], ["stage.0." + change]):
        try:
            read(path, changes)
        except SettingsError as error:
            str(error).encode()


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = 0000-99-99", ""])
def test_toml_that_parsers_stumble_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(SettingsError):
        read(tmp_path / "a.toml")
    with pytest.raises(SettingsError):
        read(EXAMPLES[0], [text.replace("a =", "seed =")])
    with pytest.raises(SettingsError, match="it is no file"):
        read(tmp_path)


def test_every_number_has_its_range() -> None:
    from dp_adapter.training import config as module

    for name in ("BaseModelConfig", "DataConfig", "AdapterConfig", "LossWeights", "TrainingStage", "MonitorConfig"):
        for field, declared in module.__dict__[name].__annotations__.items():
            assert declared not in ("int", "float", "str"), f"{name}.{field} says nothing of its range"
    assert kind_of(int) is None


# --- shards ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pattern = made.shards(tmp_path_factory.mktemp("shards"), people=1, photos=3, side=32)
    return next(Path(pattern).parent.glob("*.tar")).read_bytes()


def read_all(path: Path) -> int:
    """How many samples a shard gives. Raises TrainingError alone."""
    shards = Shards([str(path)])
    for number in range(len(shards)):
        sample = shards.sample(number)
        assert sample.labels.shape == sample.picture.shape[:2] and sample.points.shape == (5, 2)
        assert all(np.isfinite(vector).all() for vector in shards.embeddings(number).values())
        assert isinstance(shards.about(number)["caption"], str)
    return len(shards)


def members(content: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = [(member.name, tar.extractfile(member)) for member in tar]
        return [(name, file.read()) for name, file in found if file is not None]


def packed(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def about_with(**changes: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **changes}).encode()


def bomb(size: int, said: int | None = None) -> bytes:
    """An npz file whose one array has this many bytes of zeros; ``said``: what its headers say instead."""
    buffer = io.BytesIO()
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        array, {"descr": "<f2", "fortran_order": False, "shape": ((said or size) // 2,)}
    )
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file, file.open("sface.npy", "w") as member:
        member.write(array.getvalue())
        for _ in range(size // 2**20):
            member.write(bytes(2**20))
    return buffer.getvalue()


def picture(width: int, height: int, kind: str = "PNG", mode: str = "1") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind)
    return buffer.getvalue()


def many_pixels(side: int) -> bytes:
    """A PNG file whose header says that it is so large."""
    content = bytearray(picture(32, 32))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


ABOUTS: list[dict[str, Any]] = [
    {"version": 2}, {"version": "1"}, {"version": None}, {"person": 7}, {"person": "\ud800"}, {"caption": None},
    {"caption": ["a"]}, {"box": [0, 0, 1]}, {"box": [9, 9, 1, 1]}, {"box": [0, 0, float("nan"), 1]}, {"box": "abcd"},
    {"box": [0, 0, 1e300, 1]}, {"points": [[1, 2]]}, {"points": []}, {"points": {}}, {"facts": 3},
    {"points": [[10**400, 0]] * 5},
]  # fmt: skip


@pytest.mark.parametrize("changes", ABOUTS, ids=str)
def test_a_samples_text_and_numbers(changes: dict[str, Any], shard: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        packed([(name, about_with(**changes)(c) if name.endswith("json") else c) for name, c in members(shard)])
    )
    with pytest.raises(TrainingError, match=r"a\.tar is no shard of training samples"):
        Shards([str(tmp_path / "a.tar")])


CONTENTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a bomb": ("npz", lambda: bomb(2 * MOST_BYTES)),
    "a bomb that says less": ("npz", lambda: bomb(MOST_BYTES // 2, 256)),
    "an array that says more": ("npz", lambda: bomb(2**20, 2**45)),
    "no archive": ("npz", lambda: b"PK\3\4" + bytes(99)),
    "an empty archive": ("npz", lambda: b"PK\5\6" + bytes(17)),
    "many pixels": ("png", lambda: many_pixels(30_000)),
    "other labels": ("labels.png", lambda: picture(33, 32, mode="L")),
    "labels in colour": ("labels.png", lambda: picture(32, 32, mode="RGB")),
    "labels in 16 bits": ("labels.png", lambda: picture(32, 32, mode="I;16")),
    "a picture of another kind": ("png", lambda: picture(32, 32, "GIF", "L")),
    "no picture": ("png", lambda: b"\x89PNG\r\n\x1a\n"),
    "nothing": ("png", lambda: b""),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_samples_files(name: str, shard: bytes, tmp_path: Path) -> None:
    kind, make = CONTENTS[name]
    files = [(one, make() if one.partition(".")[2] == kind else content) for one, content in members(shard)]
    (tmp_path / "a.tar").write_bytes(packed(files))
    with pytest.raises(TrainingError, match=r"Sample .* in a\.tar is damaged"):
        read_all(tmp_path / "a.tar")


@given(data=st.data())
@hostile
def test_a_shard_changed_anyhow(data: st.DataObject, shard: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    content = bytearray(shard)
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from(["flip", "header", "cut", "swap", "rename", "drop", "twice"]))
        if way == "flip" and content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        elif way == "header" and len(content) > 1024:  # where tar says names, sizes and kinds, with a right checksum
            start = 512 * data.draw(st.integers(0, len(content) // 512 - 1))
            block = content[start : start + 512]
            block[data.draw(st.integers(0, 256))] = data.draw(st.integers(0, 255))
            block[148:156] = b" " * 8
            block[148:156] = f"{sum(block):06o}\0 ".encode()
            content[start : start + 512] = block
        elif way == "cut":
            del content[data.draw(st.integers(0, len(content))) :]
        else:
            try:
                files = members(bytes(content))
            except Exception:  # it is damaged already
                continue
            if len(files) < 2:
                continue
            one, other = (data.draw(st.integers(0, len(files) - 1)) for _ in range(2))
            if way == "swap":
                files[one], files[other] = (files[one][0], files[other][1]), (files[other][0], files[one][1])
            elif way == "rename":
                name = data.draw(st.sampled_from(["../x.json", "/etc/x.npz", ".json", "a", "0.labels.png", "é.jpg"]))
                files[one] = (name, files[one][1])
            elif way == "drop":
                del files[one]
            else:
                files.append(files[other])
            content = bytearray(packed(files))
    path.write_bytes(content)
    try:
        read_all(path)
    except TrainingError as error:
        assert len(str(error)) < 600 and "a.tar" in str(error)


def test_a_cut_is_never_taken_for_the_end(shard: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    end = len(shard.rstrip(b"\0"))
    for length in range(0, end, 512):
        path.write_bytes(shard[:length])
        with pytest.raises(TrainingError):
            read_all(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("size", [-512, -1, 2**40])
def test_sizes_that_no_member_has(kind: bytes, size: int, shard: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("0.json")
    member.type = kind
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(bytes(header) + shard)
    with pytest.raises(TrainingError, match="no shard of training samples"):
        Shards([str(tmp_path / "a.tar")])


def test_things_that_are_no_shard(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(TrainingError, match=r"folder\.tar is no file"):
        Shards([str(tmp_path / "folder.tar")])
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.tar")
        with pytest.raises(TrainingError, match=r"pipe\.tar is no file"):
            Shards([str(tmp_path / "pipe.tar")])
    foreign = packed([("0.jpg", picture(32, 32, "JPEG", "L")), ("0.txt", b"a cat"), ("0.json", b'{"url": "x"}')])
    for name, content in {"foreign": foreign, "zip": bomb(2**20), "empty": b"", "zeros": bytes(10240)}.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(TrainingError, match=r"no shard of training samples|no samples"):
            Shards([str(tmp_path / f"{name}.tar")])


# --- logs of work and checkpoints -----------------------------------------------------------------------------------


@given(data=st.data())
@hostile
def test_a_log_of_work_changed_anyhow(data: st.DataObject, tmp_path: Path) -> None:
    work, digest = WorkLog(tmp_path), "ab" * 32
    work.save(digest, PictureResult((made.sample(0, 0, 32).to_record(),)))
    path = tmp_path / "ab" / f"{digest}.zip"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        entries, _ = work.load(digest)
        for entry in entries:
            work.record(entry)
    except TrainingError as error:
        assert str(path) in str(error)
    else:
        assert digest in work


def progress_of(config: Config) -> dict[str, Any]:
    progress = Progress(0, 1, 1, 1, "2026-01-01T00:00:00+00:00", 1.0, to_tables(config))
    return json.loads(json.dumps(vars(progress)))


def test_a_runs_progress_may_be_anything(tmp_path: Path) -> None:
    config = read(EXAMPLES[0])
    folder = tmp_path / "out" / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    stored = progress_of(config)
    for path in [path for path in places(stored) if len(path) < 2 or path[1] == "stage"]:
        for value in (None, -1, "x", [], {}, True, 10**400):
            (folder / "progress.json").write_text(json.dumps(with_value(stored, path, value)))
            try:
                run_checkpoint.read_progress(folder, config, 1)
            except TrainingError as error:
                assert "out" in str(error) or "processes" in str(error)
    for text in ("", "[", "[]", "[" * 100_000, "\0"):
        (folder / "progress.json").write_text(text)
        with pytest.raises(TrainingError, match=r"checkpoint .* is damaged"):
            run_checkpoint.read_progress(folder, config, 1)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4" + bytes(99), b"\x80\2]q\0."])
def test_an_optimisers_state_that_is_none(content: bytes, tmp_path: Path) -> None:
    def restore(state: dict[str, Any]) -> None:
        assert "optimizer" in state, "no state"

    (tmp_path / "optimizer.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint .* is damaged.*Delete this folder"):
        run_checkpoint.restore_optimizer(tmp_path, restore)
