"""Downloads from a real HTTPS server on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dp_adapter import catalog, download
from dp_adapter.errors import CatalogError
from tests.https_server import BODY, HALF, Server, left, part_for, serving

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.mark.parametrize("path", ["good", "moved"])
def test_a_whole_download(server: Server, tmp_path: Path, path: str) -> None:
    model = server.model(path)
    seen: list[tuple[int, int]] = []
    got = catalog.fetch(
        model, tmp_path, opener=server.opener(), progress=lambda done, total: seen.append((done, total))
    )
    assert got == tmp_path / "dp_adapter" / "ip-adapter_sd15.safetensors"
    assert got.read_bytes() == BODY
    assert left(tmp_path) == [got.name]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(BODY), len(BODY))
    asked = len(server.log)
    assert catalog.fetch(model, tmp_path, opener=server.opener()) == got
    assert len(server.log) == asked, "a valid file was fetched again"


def test_a_cut_download_is_resumed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"1,536,000 of 3,072,000 bytes.*resumes"):
        catalog.fetch(server.model("cut"), tmp_path, opener=server.opener())
    assert left(tmp_path) == ["ip-adapter_sd15.safetensors.part"]
    seen: list[int] = []
    got = catalog.fetch(
        server.model("good"), tmp_path, opener=server.opener(), progress=lambda done, _: seen.append(done)
    )
    assert got.read_bytes() == BODY
    assert server.log == [("/cut", None), ("/good", f"bytes={HALF}-")]
    assert seen[0] > HALF


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    model = server.model("norange")
    part_for(model, tmp_path, b"other" * 100)
    assert catalog.fetch(model, tmp_path, opener=server.opener()).read_bytes() == BODY
    assert server.log == [("/norange", "bytes=500-")]
    stale = part_for(model, tmp_path / "b", b"!" * (len(BODY) - 1))
    with pytest.raises(CatalogError, match="connection ended"):
        catalog.fetch(server.model("cut"), tmp_path / "b", opener=server.opener())
    assert stale.read_bytes() == BODY[:HALF]


def test_a_complete_part_needs_no_request_and_a_larger_one_is_dropped(server: Server, tmp_path: Path) -> None:
    model = server.model("good")
    part_for(model, tmp_path / "a", BODY)
    assert catalog.fetch(model, tmp_path / "a", opener=server.opener()).read_bytes() == BODY
    assert server.log == []
    part_for(model, tmp_path / "b", BODY + b"!")
    assert catalog.fetch(model, tmp_path / "b", opener=server.opener()).read_bytes() == BODY
    assert server.log == [("/good", None)]


@pytest.mark.parametrize(
    ("path", "part", "words", "kept"),
    [
        ("wrong", b"", "came with the SHA-256", False),
        ("long", b"", "sends more", False),
        ("announced-long", b"", "offers 3,072,004 bytes", False),
        ("shifted", BODY[:10], "was asked for the bytes from 10", True),
        ("unsatisfiable", BODY[:10], "416", False),
        ("missing", BODY[:10], "404", True),
        ("downgraded", b"", "not https", False),
        ("good", b"damaged", "came with the SHA-256", False),
    ],
)
def test_bad_answers_leave_no_file(
    server: Server, tmp_path: Path, path: str, part: bytes, words: str, kept: bool
) -> None:
    model = server.model(path)
    if part:
        part_for(model, tmp_path, part)
    with pytest.raises(CatalogError, match=words):
        catalog.fetch(model, tmp_path, opener=server.opener())
    assert left(tmp_path) == ([model.filename + ".part"] if kept else [])


def test_an_endless_answer_is_not_read_to_the_end(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="sends more"):
        catalog.fetch(server.model("long"), tmp_path, opener=server.opener())
    assert server.surplus < 32  # what the sockets' buffers hold


def test_an_untrusted_certificate_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"(?i)certificate"):
        catalog.fetch(server.model("good"), tmp_path)
    assert left(tmp_path) == []


def test_plain_http_is_refused_even_by_an_opener_that_could(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="not https"):
        download.download("http://127.0.0.1:9/x", tmp_path / "x", size=1, sha256="0" * 64, page="-")
    with pytest.raises(OSError, match="unknown url type"):
        download.https_opener().open("file:///etc/hosts")


def test_a_full_disk_stops_before_the_first_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    full = usage._replace(free=1_000_000)

    def disk_usage(path: Path) -> object:
        return full

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(CatalogError, match=r"1 MB free.*needs 70 MB"):
        catalog.fetch(server.model("good"), tmp_path, opener=server.opener())
    assert (server.log, left(tmp_path)) == ([], [])


def test_a_different_file_in_the_place_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    model = server.model("good")
    model.path_in(tmp_path).parent.mkdir()
    model.path_in(tmp_path).write_bytes(b"mine")
    with pytest.raises(CatalogError, match="4 bytes"):
        catalog.fetch(model, tmp_path, opener=server.opener())
    assert model.path_in(tmp_path).read_bytes() == b"mine"


def test_a_file_in_use_keeps_its_place_and_nothing_is_downloaded_twice(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows has it, where what a program has open cannot be replaced."""
    model = server.model("good")

    def in_use(_path: Path, _target: Path) -> Path:
        raise PermissionError(13, "The process cannot access the file")

    with monkeypatch.context() as windows:
        windows.setattr(Path, "replace", in_use)
        with pytest.raises(CatalogError, match=r"could not take its place.*cannot access.*nothing is downloaded twice"):
            catalog.fetch(model, tmp_path, opener=server.opener())
    asked = len(server.log)
    assert catalog.fetch(model, tmp_path, opener=server.opener()).read_bytes() == BODY
    assert len(server.log) == asked


def test_what_cannot_be_fetched_says_why(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"no checksum is known.*Download it yourself from https://.*dp_adapter"):
        catalog.fetch(catalog.find("pulid_v1"), tmp_path)
    with pytest.raises(CatalogError, match="git checkout"):
        catalog.fetch(catalog.find("yunet"), tmp_path)


def test_a_second_process_is_turned_away_and_a_killed_one_blocks_nobody(server: Server, tmp_path: Path) -> None:
    model, program = server.model("slow"), "import sys, ssl; from pathlib import Path; from dp_adapter import download;"
    program += "download.download(sys.argv[1], Path(sys.argv[2]), size=int(sys.argv[3]), sha256=sys.argv[4], page='-',"
    program += "opener=download.https_opener(ssl.create_default_context(cafile=sys.argv[5])))"
    target = model.path_in(tmp_path)
    arguments = [model.url, str(target), str(model.size), str(model.sha256), str(server.certificate)]
    other = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=REPOSITORY)
    try:
        assert server.asked.wait(20)
        with pytest.raises(CatalogError, match="another process"):
            catalog.fetch(model, tmp_path, opener=server.opener())
    finally:
        other.kill()
        other.wait()
    assert [path.suffix for path in target.parent.iterdir()] == [".lock"]
    server.go_on.set()
    assert catalog.fetch(model, tmp_path, opener=server.opener()).read_bytes() == BODY
    assert left(tmp_path) == [target.name]
