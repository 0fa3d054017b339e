"""Containers of weights whose bytes say anything: tensors or a sentence, in little memory, without waiting."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from dp_adapter import pickles
from dp_adapter.errors import DPAdapterError, HostError, WeightsError
from dp_adapter.hosts.pipelines import single_file
from dp_adapter.identity.encoders.encoder_folders import EncoderFolders
from dp_adapter.weights.files import open_weights
from dp_adapter.weights.w_plus_latents import read_arrays, read_latent
from tests import tiny
from tests.hostile.tries import hostile

REPOSITORY = Path(__file__).parents[2]
TENSORS = {"image_proj": {"weight": torch.ones(3, 4)}, "ip_adapter": {"1.to_k_ip.weight": torch.ones(2, 2)}}


def saved(container: tiny.Container) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.bin"
        tiny.write(
            path, {"image_proj.weight": torch.ones(3, 4), "ip_adapter.1.to_k_ip.weight": torch.ones(2, 2)}, container
        )
        return path.read_bytes()


CONTAINERS: tuple[tiny.Container, ...] = ("zip", "legacy", "safetensors")
WHOLE = {container: saved(container) for container in CONTAINERS}


def write_deflated(path: Path, tensor: torch.Tensor) -> None:
    torch.save({"state_dict": {"a": tensor}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@hostile
@given(
    container=some.sampled_from(sorted(WHOLE)),
    cut=some.integers(0, 5000),
    changes=some.lists(some.tuples(some.integers(0, 5000), some.integers(0, 255)), max_size=6),
    suffix=some.sampled_from([".bin", ".safetensors", ".ckpt"]),
)
def test_any_bytes(container: str, cut: int, changes: list[tuple[int, int]], suffix: str) -> None:
    data = bytearray(WHOLE[container])
    for place, value in changes:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(data[: len(data) - cut % len(data)])
        for read in (open_weights, single_file.inspect_file, read_latent):
            try:
                read(path)
            except DPAdapterError as error:
                assert "file" in str(error)


def test_what_is_compressed_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    write_deflated(path, torch.zeros(1000, 1000))
    assert path.stat().st_size < 100_000
    with pytest.raises(WeightsError, match="is compressed inside"):
        open_weights(path)


def test_members_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    start = int.from_bytes(data[end + 16 : end + 20], "little")
    entries, count = data[start:end], int.from_bytes(data[end + 10 : end + 12], "little")
    if b"PK\x06\x06" in entries:
        entries = entries[: entries.index(b"PK\x06\x06")]
    more = entries * 50
    tail = b"PK\x05\x06\0\0\0\0" + (count * 50).to_bytes(2, "little") * 2
    tail += len(more).to_bytes(4, "little") + start.to_bytes(4, "little") + b"\0\0"
    path.write_bytes(data[:start] + more + tail)
    with pytest.raises(WeightsError, match="twice"):
        pickles.unpickle(path)


@pytest.mark.parametrize("opcode", [b"]", b"}", b"\x8f"])
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_objects_without_number_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opcode: bytes, container: str
) -> None:
    monkeypatch.setattr(pickles, "_MOST_OPCODES", 10_000)
    content = b"\x80\x02(" + opcode * 10_001 + b"l."
    path = tmp_path / "many.pt"
    if container == "legacy":
        path.write_bytes(b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {})) + content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", b"3\n")
    with pytest.raises(WeightsError, match="more objects than any model"):
        pickles.unpickle(path)


@pytest.mark.parametrize("names", [["state_dict"], ["state_dict", *"abcdef"]])
def test_a_state_dict_that_holds_itself(tmp_path: Path, names: list[str]) -> None:
    path, itself = tmp_path / "loop.ckpt", dict[str, object]()
    for name in names:
        itself[name] = itself
    torch.save(itself, path)
    for read, error in ((single_file.inspect_file, HostError), (open_weights, WeightsError)):
        with pytest.raises(error):
            read(path)


@pytest.mark.parametrize("content", [b"", b"\x80", b"{", b"PK", b"PK\x03\x04", b"\x00" * 9])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pt"])
def test_a_few_bytes(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"few{suffix}"
    path.write_bytes(content)
    for read in (open_weights, single_file.inspect_file, read_latent):
        with pytest.raises(DPAdapterError, match="few"):
            read(path)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"no array")


def write_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((5_000, 5_000), np.float32))
        archive.writestr("w.npy", buffer.getvalue())


def write_promise(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})


@pytest.mark.parametrize("write", [write_zip, write_bomb, write_promise])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_arrays_that_are_none(tmp_path: Path, write: Callable[[Path], None], suffix: str) -> None:
    path = tmp_path / f"latent{suffix}"
    write(path)
    with pytest.raises(WeightsError, match="latent"):
        read_arrays(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_no_towers(tmp_path: Path) -> None:
    for folder in ("clip_vision", "other"):
        (tmp_path / folder).mkdir()
        os.mkfifo(tmp_path / folder / "pipe.safetensors")
    (tmp_path / "clip_vision" / "file.safetensors").write_bytes(b"x")
    folders = EncoderFolders([tmp_path], [tmp_path / "other"])
    assert [path.name for path in folders.towers()] == ["file.safetensors"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
@pytest.mark.parametrize("kind", ["deflated", "objects"])
def test_memory(tmp_path: Path, kind: str) -> None:
    """A file takes at most its own size and 500 MB, in a process of its own."""
    path = tmp_path / "bomb.pt"
    if kind == "deflated":
        write_deflated(path, torch.zeros(300_000_000, dtype=torch.uint8))
    else:
        magic = b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {}))
        path.write_bytes(magic + b"\x80\x02(" + b"\x8f" * 499_000 + b"l.")
    code = """
import resource, sys, torch
from pathlib import Path
from dp_adapter.errors import WeightsError
from dp_adapter.weights.files import open_weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_weights(Path(sys.argv[1]))
except WeightsError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert int(done.stdout) * 1024 < path.stat().st_size + 500e6
