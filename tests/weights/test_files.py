"""Weight files of any container, whole, damaged, foreign or hostile."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dp_adapter.core.adapter import SiteAdapter
from dp_adapter.errors import WeightsError
from dp_adapter.weights import formats
from dp_adapter.weights.files import WeightFile, file_digest, open_weights, require_finite
from tests import tiny

CONTAINERS: list[tiny.Container] = ["safetensors", "zip", "legacy"]
NESTED = {"one": {"a.b": torch.arange(6.0).reshape(2, 3)}, "two": {"c": torch.ones(4).half()}}


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pt", "x.PTH", "x.ckpt"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_content_decides_not_the_name(tmp_path: Path, container: tiny.Container, name: str) -> None:
    file = open_weights(tiny.write(tmp_path / name, NESTED, container))
    assert set(file.tensors) == {"one.a.b", "two.c"}
    assert torch.equal(file.tensors["one.a.b"], NESTED["one"]["a.b"])
    assert file.tensors["two.c"].dtype == torch.float16


def test_a_safetensors_header_may_have_the_length_of_a_zips_magic(tmp_path: Path) -> None:
    """A header of 0x4b50 bytes makes the file start with PK; one file in some thousands has it."""
    length = int.from_bytes(b"PK", "little")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(length)
    data = length.to_bytes(8, "little") + header + torch.ones(2).numpy().tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert path.read_bytes()[:2] == b"PK"
    assert torch.equal(open_weights(path).tensors["a"], torch.ones(2))


# Damage.


def damaged(path: Path, *words: str) -> None:
    """Reading fails in words that name the file and say what to do."""
    for read in (open_weights, formats.read):
        with pytest.raises(WeightsError) as caught:
            read(path)
        for word in (path.name, *words):
            assert word in str(caught.value), str(caught.value)
        assert caught.value.hint
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.02])
@pytest.mark.parametrize("container", CONTAINERS)
def test_truncated(tmp_path: Path, container: tiny.Container, keep: float) -> None:
    path = tiny.write(tmp_path / "half.bin", tiny.family_tensors("ip-adapter"), container)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    damaged(path, "damaged", "Download it again")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("length", [1, 7, 9, 40])
def test_only_the_first_bytes(tmp_path: Path, container: tiny.Container, length: int) -> None:
    path = tiny.write(tmp_path / "stub.safetensors", NESTED, container)
    path.write_bytes(path.read_bytes()[:length])
    damaged(path, "damaged")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("container", CONTAINERS)
def test_random_damage_is_always_reported_in_words(tmp_path: Path, container: tiny.Container) -> None:
    whole = tiny.write(tmp_path / "x.bin", NESTED, container).read_bytes()
    chance = random.Random(0)
    path = tmp_path / "bitten.bin"
    for _ in range(300):
        data = bytearray(whole[: chance.randrange(1, len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.choice([1, 1, 2, 8])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(WeightsError):  # a bite into a number leaves a readable file
            open_weights(path)


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "nothing.safetensors").touch()
    damaged(tmp_path / "nothing.safetensors", "is empty")


def test_missing(tmp_path: Path) -> None:
    damaged(tmp_path / "not there.bin", "There is no file")
    (tmp_path / "folder.bin").mkdir()
    damaged(tmp_path / "folder.bin", "There is no file")


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        b"<!DOCTYPE html><html>not found</html>",
        b'{"a": 1}',
        bytes(range(256)) * 8,
        b"\0" * 100,
        b"{" * 100,
        b"\xff" * 8 + b"{",
    ],
    ids=["git-lfs pointer", "html", "json", "bytes", "zeros", "braces", "huge header"],
)
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_something_else_under_a_weight_files_name(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"odd{suffix}").write_bytes(content)
    damaged(tmp_path / f"odd{suffix}", "damaged")


def test_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    damaged(tmp_path / "readme.txt", "'.txt'", ".safetensors")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.bin", "w") as archive:
        archive.writestr("photo.jpg", b"jpeg")
    damaged(tmp_path / "photos.bin", "damaged")


def test_a_tar_archive(tmp_path: Path) -> None:
    """torch's loader of tar archives ran code in spite of ``weights_only`` before 2.6 (CVE-2025-32434)."""
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    damaged(tmp_path / "old.pt", "tar archive")


@pytest.mark.parametrize("value", [[torch.ones(2)], {"epoch": 3}, {}, torch.ones(2)], ids=["list", "ints", "{}", "1"])
def test_no_named_tensors(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "x.bin")
    damaged(tmp_path / "x.bin", "holds no tensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("where", ["image_proj.proj.weight", "ip_adapter.31.to_v_ip.weight"])
def test_not_finite(tmp_path: Path, bad: float, where: str) -> None:
    tensors = tiny.flat(tiny.family_tensors("ip-adapter"))
    tensors[where].flatten()[-1] = bad
    path = tiny.write(tmp_path / "burnt.safetensors", tensors, "safetensors")
    with pytest.raises(WeightsError, match=rf"burnt.safetensors holds NaN or infinite values in '{where}'"):
        formats.read(path)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("place", [0, 7, 500, 1000])
def test_not_finite_anywhere(dtype: torch.dtype, place: int) -> None:
    """In every precision, whatever else is there; the greatest numbers are none of that."""
    values = torch.randn(1001, dtype=torch.float64)
    values[3], values[600] = torch.finfo(dtype).max, torch.finfo(dtype).min
    fine = {"a": values.to(dtype), "none": torch.zeros(0)}
    require_finite(WeightFile(Path("x"), fine, {}))
    for bad in (float("nan"), float("inf"), float("-inf")):
        values[place] = bad
        with pytest.raises(WeightsError, match="NaN or infinite values in 'a'"):
            require_finite(WeightFile(Path("x"), {"a": values.to(dtype)}, {}))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
@pytest.mark.parametrize("container", CONTAINERS)
def test_weights_are_the_file_itself(tmp_path: Path, container: tiny.Container) -> None:
    """Keys and values of the sites, and the LoRA, lie in the mapped file; a legacy pickle can only be read."""
    path = tiny.write(tmp_path / "x.bin", tiny.family_tensors("faceid"), container)
    checkpoint = formats.read(path)
    sites = [checkpoint.adapter.site(index) for index in range(16)]
    weights = [linear.weight for site in sites if isinstance(site, SiteAdapter) for linear in (site.to_k, site.to_v)]
    weights += [tensor for entry in checkpoint.lora for tensor in (entry.down, entry.up)]
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    mapped = [any(low <= tensor.data_ptr() < high for low, high in ranges) for tensor in weights]
    assert len(mapped) > 32
    assert all(mapped) if container != "legacy" else not any(mapped)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32], ids=str)
def test_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {key: value.to(dtype) for key, value in tiny.flat(tiny.family_tensors("ip-adapter")).items()}
    checkpoint = formats.read(tiny.write(tmp_path / "x.safetensors", tensors, "safetensors"))
    site = checkpoint.adapter.site(3)
    assert site.get_parameter("to_k.weight").dtype == dtype
    assert checkpoint.adapter.projection.get_parameter("proj.weight").dtype == torch.float32


# Code.


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return subprocess.getoutput, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "raw pickle 2", "raw pickle 4"])
@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, form: str, name: str) -> None:
    mark, path = tmp_path / "it ran", tmp_path / name
    evil = {"image_proj": {"a": torch.ones(2)}, "code": Payload(f"touch '{mark}'")}
    if form.startswith("raw"):
        path.write_bytes(pickle.dumps(Payload(f"touch '{mark}'"), protocol=int(form[-1])))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError) as caught:
        formats.read(path)
    assert not mark.exists()
    assert path.name in str(caught.value)
    if form != "raw pickle 4":  # refused by its opcodes, before anything is known about code
        assert "contains code" in str(caught.value)
        assert "Nothing of it was run" in caught.value.hint
    # The payload is real: a careless reader runs it.
    if form == "raw pickle 2":
        pickle.loads(path.read_bytes())
        assert mark.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:'torch.load' received a zip")
def test_a_script_is_not_run(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "x.pt"))
    with pytest.raises(WeightsError, match="contains code"):
        formats.read(tmp_path / "x.pt")


def test_a_tar_archive_with_a_zip_file_behind_it(tmp_path: Path) -> None:
    """Whoever looks for zip files at their end takes it for one; torch looks at the front."""
    with tarfile.open(tmp_path / "x.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO(b""))
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        archive.writestr("x/data.pkl", b"")
    assert zipfile.is_zipfile(tmp_path / "x.pt")
    damaged(tmp_path / "x.pt", "tar archive")


def test_numbers_that_this_torch_does_not_know_are_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.1 refuses 8-bit floats in its own format in the words that it has for code."""

    def refuse(*_args: object, **_kwargs: object) -> object:
        raise pickle.UnpicklingError("WeightsUnpickler error: Unsupported class torch._utils._rebuild_tensor_v3")

    monkeypatch.setattr(torch.serialization, "load", refuse)
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    damaged(tmp_path / "x.bin", "numbers of a kind that torch", "cannot read from this format")


# Digest.


def test_digest_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"other content")
    assert file_digest(path) != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_memory_is_mapped_not_copied(tmp_path: Path) -> None:
    """A tensor of a zip is the file's own pages: it shows what is later written there, which a copy would not."""
    path = tiny.write(tmp_path / "x.bin", {"a": torch.full((4096,), 2.0)}, "zip")
    tensor: Tensor = open_weights(path).tensors["a"]
    before = tensor.sum().item()
    data = path.read_bytes()
    offset = data.index(torch.full((4096,), 2.0).numpy().tobytes())
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(torch.tensor(5.0).numpy().tobytes())
    assert before == 8192
    assert tensor.sum().item() == 8195


def test_metadata_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, str(tmp_path / "x.safetensors"), metadata={"note": "hello"})
    assert open_weights(tmp_path / "x.safetensors").metadata == {"note": "hello"}


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_host_that_puts_its_own_in_place_of_torch_load(
    tmp_path: Path, container: tiny.Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1111's check refuses open files and what current versions of torch write, and answers None."""
    path = tiny.write(tmp_path / "adapter.bin", tiny.family_tensors("ip-adapter"), container)

    def load(*_args: object, **_named: object) -> None:
        return None

    monkeypatch.setattr(torch, "load", load)
    assert open_weights(path).tensors
